"""Rows into and out of messages."""

import numpy as np


def pack(x: np.ndarray, token: np.ndarray, trailer: np.ndarray, out: np.ndarray,
         place: np.ndarray | None = None) -> None:
    """Row `place[i]` of `out`, or row i, becomes the row `token[i]` of x `[T, H]`, then `trailer[i]`.

    `out` is `[extent, units]` uint16, as wide as a row and its trailer (`[N, W]` int16) or wider; place `[N]`.
    """
    rows, at = x.view(np.uint16), slice(None) if place is None else place
    width = rows.shape[1]
    out[at, :width] = rows[token]
    out[at, width:width + trailer.shape[1]] = trailer.view(np.uint16)


def gather(message: np.ndarray, place: np.ndarray | None) -> np.ndarray:
    """The rows `place` `[N]` of a message `[extent, units]`, one after another; all as they lie where it is None."""
    return message if place is None else message[place]


def unpack(message: np.ndarray, hidden: int, dtype: np.dtype) -> np.ndarray:
    """The rows in a message `[N, units]` uint16, without what follows them -> `[N, hidden]` of `dtype`."""
    width = hidden * dtype.itemsize // 2
    rows = message[:, :width]
    return (rows if rows.flags.c_contiguous else np.ascontiguousarray(rows)).view(dtype)


def trailer(message: np.ndarray, hidden: int, dtype: np.dtype, width: int) -> np.ndarray:
    """The trailers in a message, `[N, width]` int16."""
    first = hidden * dtype.itemsize // 2
    return message[:, first:first + width].view(np.int16)
