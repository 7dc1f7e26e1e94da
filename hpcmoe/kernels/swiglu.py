"""SwiGLU (Shazeer, "GLU variants improve transformer", 2020)."""

import numpy as np

from hpcmoe.kernels.linear import linear


def swiglu(x: np.ndarray, gate_up: np.ndarray, down: np.ndarray) -> np.ndarray:
    """x `[T, H]`, gate_up `[2 I, H]` (gate rows first), down `[H, I]` -> `[T, H]` of x's dtype."""
    return linear(activate(linear(x, gate_up)), down)


def activate(both: np.ndarray) -> np.ndarray:
    """silu(gate) * up of `[T, 2 I]` (gate first) -> `[T, I]`."""
    width = both.shape[1] // 2
    gate = both[:, :width].astype(np.float32, copy=False)
    with np.errstate(over="ignore"):  # exp(-x) of a very negative x is infinite, and 0 the right answer
        silu = (gate / (1 + np.exp(-gate))).astype(both.dtype, copy=False)
    return silu * both[:, width:]
