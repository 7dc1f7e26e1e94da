"""Matrix products."""

import numpy as np


def linear(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """x `[T, in]` times weight `[out, in]` float32, transposed -> `[T, out]` of x's dtype.

    Products are summed in float32 and rounded once.
    """
    return product(x, weight).astype(x.dtype, copy=False)


def product(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """The same, left in float32."""
    return x.astype(np.float32, copy=False) @ weight.T
