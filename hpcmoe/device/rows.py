"""Rows into and out of messages, and the sum of answers; rows.cu. Twins: `kernels.pack`, `kernels.combine`."""

import cupy

from hpcmoe.device.cuda import across, launch
from hpcmoe.device.gate import Map, Route

COMBINED = 128
"""Threads of a block of `combine`: small ones, so that the GPU is full up to the end."""


def pack(x: cupy.ndarray, route: Route, at: Map, base: cupy.ndarray, out: cupy.ndarray, width: int) -> None:
    """The rows of tokens x `[T, H]` uint16 that leave, behind `base[rank]` in out `[extent, units]`, with trailers.

    base `[R]` int32; `width` int16 of a row are its trailer.
    """
    K = route.expert.shape[1]
    launch("rows.pack", len(x), x, route.expert, at.local, route.rank, route.row, base, out, K, x.shape[1],
           out.shape[1], width, threads=across(x.shape[1]), shared=8 * K)


def take(rows: cupy.ndarray, index: cupy.ndarray | None, count: int, hidden: int,
         out: cupy.ndarray | None = None) -> cupy.ndarray:
    """The first `hidden` values of rows `index` `[count]` int32, or the first `count`, of `[extent, units]` uint16."""
    if out is None:
        out = cupy.empty((count, hidden), rows.dtype)
    launch("rows.take", count, rows, index, out, hidden, rows.shape[1], hidden, threads=across(hidden))
    return out


def put(rows: cupy.ndarray, index: cupy.ndarray, out: cupy.ndarray) -> None:
    """Rows `[N, H]` become the rows `index` `[N]` int32 of out `[extent, H]`, uint16."""
    launch("rows.put", len(rows), rows, index, out, rows.shape[1], threads=across(rows.shape[1]))


def combine(x: cupy.ndarray, rows: cupy.ndarray, shared: cupy.ndarray | None, route: Route, base: cupy.ndarray,
            round_each: bool) -> None:
    """x `[T, H]` += the weighted sum of each token's answers; a rank's lie behind `base[rank]` in rows `[extent, H]`.

    base `[R]` int32; shared `[T, H]`: the shared expert's answer. In float32 and in the order of k.
    """
    K = route.expert.shape[1]
    launch("rows.combine", (len(x), -(-x.shape[1] // (8 * COMBINED))), x, rows, shared, route.weight, route.rank,
           route.home, base, K, x.shape[1], round_each, threads=COMBINED, shared=12 * K)
