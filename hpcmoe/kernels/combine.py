"""The weighted sum of a token's answers."""

import numpy as np


def combine(rows: np.ndarray, home: np.ndarray, weight: np.ndarray, round_each: bool = False,
            dtype: np.dtype | None = None) -> np.ndarray:
    """Sum over k of weight[t, k] * rows[home[t, k]], in float32 and in the order of k, rounded at the end.

    `round_each` rounds each product first, as families do whose weights are rounded (`spec.Moe.round_weights`).

    rows `[N, H]`, home `[T, K]` int32, -1 where there is none, weight `[T, K]` float32 -> `[T, H]` of rows' dtype. The
    order of the rows, hence placement and arrival, has no part in the result.

    Where experts are cut into t shards home is `[T, K * t]`, all there, and rows are float32, parts of answers of
    `dtype`: each answer is the sum of its t parts, in float32 and in their order, rounded once.
    """
    dtype, shards = dtype or rows.dtype, home.shape[1] // max(weight.shape[1], 1)
    total = np.zeros((len(home), rows.shape[1]), np.float32)
    for k in range(weight.shape[1]):
        parts = home[:, k * shards:(k + 1) * shards]
        there = parts[:, 0] >= 0
        at = slice(None) if there.all() else np.flatnonzero(there)
        part = weight[at, k, None] * _answer(rows, parts[at], dtype)
        total[at] += part.astype(dtype).astype(np.float32, copy=False) if round_each else part
    return total.astype(dtype, copy=False)


def _answer(rows: np.ndarray, parts: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """`[n, H]` float32 with values of `dtype`: answers whose parts `[n, t]` are these rows."""
    total = rows[parts[:, 0]].astype(np.float32, copy=False)
    for shard in range(1, parts.shape[1]):
        total += rows[parts[:, shard]]
    return total if rows.dtype == dtype else total.astype(dtype).astype(np.float32, copy=False)
