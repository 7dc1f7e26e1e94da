"""Matrix products."""

import numpy as np


def linear(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None = None) -> np.ndarray:
    """x `[T, in]` times weight `[out, in]` float32, transposed, plus bias `[out]` -> `[T, out]` of x's dtype.

    Products and bias are summed in float32 and rounded once.
    """
    y = product(x, weight)
    if bias is not None:
        y += bias
    return y.astype(x.dtype, copy=False)


def product(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """The same, left in float32."""
    return x.astype(np.float32, copy=False) @ weight.T
