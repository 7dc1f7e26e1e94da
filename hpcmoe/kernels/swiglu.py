"""SwiGLU (Shazeer, "GLU variants improve transformer", 2020)."""

import numpy as np

SLOPE = np.float32(1.702)
"""Of the sigmoid in gates with a bound; it then comes near a GELU's (Hendrycks and Gimpel, 2016)."""


def activate(both: np.ndarray) -> np.ndarray:
    """silu(gate) * up of `[T, 2 I]` (gate first) -> `[T, I]`."""
    width = both.shape[1] // 2
    gate = both[:, :width].astype(np.float32, copy=False)
    with np.errstate(over="ignore"):  # exp(-x) of a very negative x is infinite, and 0 the right answer
        silu = (gate / (1 + np.exp(-gate))).astype(both.dtype, copy=False)
    return silu * both[:, width:]


def activate_within(both: np.ndarray, limit: float) -> np.ndarray:
    """(up + 1) * gate * sigmoid(1.702 gate) of `[T, 2 I]` (gate first), gate at most and up within +- `limit` ->
    `[T, I]`. As in OpenAI's GPT-OSS (2025)."""
    width, bound = both.shape[1] // 2, np.array(limit, both.dtype)
    gate, up = np.minimum(both[:, :width], bound), np.minimum(np.maximum(both[:, width:], -bound), bound)
    wide = (gate.astype(np.float32, copy=False) * SLOPE).astype(both.dtype).astype(np.float32, copy=False)
    with np.errstate(over="ignore"):
        sigmoid = (1 / (1 + np.exp(-wide))).astype(both.dtype, copy=False)
    return (up + np.array(1, both.dtype)) * (gate * sigmoid)
