"""Rotary positions (Su et al., "RoFormer", 2021), pairs taken from the two halves of what turns."""

import math

import numpy as np

from hpcmoe.spec import Attention, Yarn


def frequencies(a: Attention) -> np.ndarray:
    """`[a.turning / 2]` float32 radians per position."""
    exponent = np.arange(0, a.turning, 2, dtype=np.float32) / a.turning
    plain = (1 / a.rope_theta ** exponent).astype(np.float32)
    if not a.yarn:
        return plain
    kept = _kept(a.yarn, a.turning, a.rope_theta)
    slow = (1 / (np.float32(a.yarn.factor) * a.rope_theta ** exponent)).astype(np.float32)
    return slow * (1 - kept) + plain * kept


def _kept(yarn: Yarn, turning: int, theta: float) -> np.ndarray:
    """`[turning / 2]` float32 in [0, 1]: how much of each frequency stays, the rest is divided by the factor."""
    def pair(turns: float) -> float:
        """Which pair turns so often within the context before."""
        return turning * math.log(yarn.context / (turns * 2 * math.pi)) / (2 * math.log(theta))
    first, last = pair(yarn.fast), pair(yarn.slow)
    if yarn.whole:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, turning - 1)
    ramp = (np.arange(turning // 2, dtype=np.float32) - first) / (last - first or 0.001)
    return 1 - np.clip(ramp, 0, 1).astype(np.float32)


def tables(position: np.ndarray, a: Attention, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines of positions `[T]`, each `[T, 1, a.turning / 2]`, rounded to `dtype`."""
    angle = position.astype(np.float32)[:, None, None] * frequencies(a)
    magnitude = np.float32(a.yarn.magnitude if a.yarn else 1)
    return (np.cos(angle) * magnitude).astype(dtype), (np.sin(angle) * magnitude).astype(dtype)


def rotate(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """x `[T, heads, d]`: of its first values, two for each cosine, each pair (first half, second half) turned by its
    angle. The others stay."""
    half = cos.shape[-1]
    first, second, rest = x[..., :half], x[..., half:2 * half], x[..., 2 * half:]
    return np.concatenate([first * cos - second * sin, second * cos + first * sin, rest], axis=-1)
