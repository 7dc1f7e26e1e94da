"""Rows into and out of messages, and the sum of answers; rows.cu. Twins: `kernels.pack`, `kernels.combine`."""

import cupy

from hpcmoe.device.cuda import SHARED, THREADS, across, copies_in_bulk, launch
from hpcmoe.device.gate import Map, Route

HELD = 28 * 1024
"""Bytes of answers in the shared memory of a block of `combine_in_bulk`, about: some blocks fit on a multiprocessor."""
ANSWERS = 8
"""Of a token, that a thread of `combine` reads at once; as in rows.cu."""
COMBINED = 128
"""Threads of a block of `combine`: small ones, so that the GPU is full up to the end."""


def pack(x: cupy.ndarray, route: Route, at: Map, base: cupy.ndarray, out: cupy.ndarray, width: int) -> None:
    """The rows of tokens x `[T, H]` uint16 that leave, behind `base[rank]` in out `[extent, units]`, with trailers.

    base `[R]` int32; `width` int16 of a row are its trailer.
    """
    K, H = route.row.shape[1], x.shape[1]
    units = out.shape[1]
    arguments = x, route.expert, at.local, route.rank, route.row, base, out, K, route.shards, H, units, width
    if copies_in_bulk() and 2 * H <= SHARED:
        launch("rows.pack_in_bulk", len(x), *arguments, threads=32, shared=2 * H)
    else:
        launch("rows.pack", len(x), *arguments, threads=across(H), shared=8 * K)


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


def join(parts: cupy.ndarray, base: cupy.ndarray, bias: cupy.ndarray | None, out: cupy.ndarray) -> None:
    """out `[T, H]` uint16 becomes the sum of t parts of each token, rank r's behind `base[r]` in parts `[extent, H]`
    float32, in the order of the ranks, and of bias `[H]` uint16; base `[t]` int32."""
    T, H = out.shape
    launch("rows.join", (T, -(-H // (8 * COMBINED))), parts, base, bias, out, len(base), H, threads=COMBINED)


def combine(x: cupy.ndarray, rows: cupy.ndarray, shared: cupy.ndarray | None, route: Route, base: cupy.ndarray,
            round_each: bool) -> None:
    """x `[T, H]` += the weighted sum of each token's answers; a rank's lie behind `base[rank]` in rows `[extent, H]`.

    base `[R]` int32; shared `[T, H]`: the shared expert's answer. In float32 and in the order of k. Rows of shards are
    float32, parts of answers, which are added up first, in float32 and in their order, and rounded once.
    """
    K, H, shards = route.home.shape[1], x.shape[1], route.shards
    arguments = x, rows, shared, route.weight, route.rank, route.home, base, K, H, round_each
    part = _part(K, H)
    if copies_in_bulk() and part and shards == 1:
        launch("rows.combine_in_bulk", (len(x), -(-H // part)), *arguments, part, threads=across(part),
               shared=2 * K * part + 4 * K)
    else:
        launch("rows.combine", (len(x), -(-H // (8 * COMBINED))), *arguments, shards, threads=COMBINED,
               shared=12 * -(-K // ANSWERS) * ANSWERS)


def _part(K: int, hidden: int) -> int:
    """Values of an answer that a block of `combine_in_bulk` takes, a multiple of 8 that its threads add up in one turn;
    0 where K answers have no room for any."""
    parts = max(-(-2 * K * hidden // HELD), -(-hidden // (8 * THREADS)))
    return 8 * -(-hidden // (8 * parts)) if 16 * K <= HELD else 0
