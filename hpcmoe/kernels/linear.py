"""Matrix products."""

import numpy as np
from threadpoolctl import threadpool_info

from hpcmoe.kernels import rows

SMALL_KERNELS = {"SkylakeX", "Cooperlake", "SapphireRapids"} & {
    str(info.get("architecture")) for info in threadpool_info()}
"""Where OpenBLAS multiplies small matrices as they lie; elsewhere it always copies the whole weight first."""
FEW = 8 if SMALL_KERNELS else 4
"""Rows up to which a weight in pieces beats a weight as a whole."""
PIECE = 1 << 16 if SMALL_KERNELS else 1 << 18
"""Values of a piece: little enough for those kernels, or for a core's cache while the rows take turns at it."""


def linear(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None = None,
           dtype: np.dtype | None = None) -> np.ndarray:
    """x `[T, in]` times weight `[out, in]` float32, transposed, plus bias `[out]` -> `[T, out]` of `dtype`, or x's.

    Products and bias are summed in float32 and rounded once.
    """
    y = product(x, weight)
    if bias is not None:
        y += bias
    return y.astype(dtype or x.dtype, copy=False)


def by_head(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """x `[T, heads, in]` times weight `[heads, out, in]` float32, transposed, head by head -> `[T, heads, out]` of x's
    dtype, summed in float32 and rounded once."""
    wide = x.astype(np.float32, copy=False).transpose(1, 0, 2)
    step = 1 if rows.alone() else max(1, x.shape[0])
    out = [wide[:, first:first + step] @ weight.transpose(0, 2, 1) for first in range(0, x.shape[0], step)]
    return np.concatenate(out, axis=1).transpose(1, 0, 2).astype(x.dtype) if out else x[..., :0]


def product(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """x times weight, transposed, `[T, out]` float32."""
    wide = x.astype(np.float32, copy=False)
    if not (rows.alone() or 1 < len(wide) <= FEW):
        return wide @ weight.T
    out = np.empty((len(wide), len(weight)), np.float32)
    step = max(1, PIECE // weight.shape[1])
    for first in range(0, len(weight), step):
        piece = weight[first:first + step]
        if SMALL_KERNELS and not rows.alone():
            np.matmul(wide, piece.T, out=out[:, first:first + step])
            continue
        for row, y in zip(wide, out):
            np.dot(piece, row, out=y[first:first + step])
    return out
