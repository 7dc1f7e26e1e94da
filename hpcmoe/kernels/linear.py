"""Matrix products."""

import numpy as np

from hpcmoe.kernels import rows

FEW = 4
"""Rows up to which one product per row beats one for all: OpenBLAS copies the whole weight to prepare the latter."""
CACHED = 1 << 18
"""Values of a piece of a weight that stays in a core's cache while the rows take turns at it."""


def linear(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None = None) -> np.ndarray:
    """x `[T, in]` times weight `[out, in]` float32, transposed, plus bias `[out]` -> `[T, out]` of x's dtype.

    Products and bias are summed in float32 and rounded once.
    """
    y = product(x, weight)
    if bias is not None:
        y += bias
    return y.astype(x.dtype, copy=False)


def product(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """x times weight, transposed, `[T, out]` float32."""
    wide = x.astype(np.float32, copy=False)
    if not (rows.alone() or 1 < len(wide) <= FEW):
        return wide @ weight.T
    out = np.empty((len(wide), len(weight)), np.float32)
    step = max(1, CACHED // weight.shape[1])
    for first in range(0, len(weight), step):
        piece = weight[first:first + step]
        for row, y in zip(wide, out):
            np.dot(piece, row, out=y[first:first + step])
    return out
