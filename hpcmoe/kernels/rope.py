"""Rotary positions (Su et al., "RoFormer", 2021), pairs taken from the two halves of a head."""

import numpy as np


def frequencies(head_dim: int, theta: float) -> np.ndarray:
    """`[head_dim / 2]` float32 radians per position."""
    return (1 / theta ** (np.arange(0, head_dim, 2, dtype=np.float32) / head_dim)).astype(np.float32)


def tables(position: np.ndarray, frequency: np.ndarray, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines of positions `[T]`, each `[T, 1, head_dim / 2]`, rounded to `dtype`."""
    angle = position.astype(np.float32)[:, None, None] * frequency
    return np.cos(angle).astype(dtype), np.sin(angle).astype(dtype)


def rotate(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """x `[T, heads, head_dim]`, each pair (x[i], x[i + head_dim / 2]) turned by its angle."""
    half = x.shape[-1] // 2
    first, second = x[..., :half], x[..., half:]
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
