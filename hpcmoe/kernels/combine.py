"""The weighted sum of a token's answers."""

import numpy as np


def combine(rows: np.ndarray, home: np.ndarray, weight: np.ndarray, round_each: bool = False) -> np.ndarray:
    """Sum over k of weight[t, k] * rows[home[t, k]], in float32 and in the order of k, rounded at the end.

    `round_each` rounds each product first, as families do whose weights are rounded (`spec.Moe.round_weights`).

    rows `[N, H]`, home `[T, K]` int32, -1 where there is none, weight `[T, K]` float32 -> `[T, H]` of rows' dtype. The
    order of the rows, hence placement and arrival, has no part in the result.
    """
    total = np.zeros((len(home), rows.shape[1]), np.float32)
    for k in range(home.shape[1]):
        there = home[:, k] >= 0
        at = slice(None) if there.all() else np.flatnonzero(there)
        part = weight[at, k, None] * rows[home[at, k]].astype(np.float32, copy=False)
        total[at] += part.astype(rows.dtype).astype(np.float32, copy=False) if round_each else part
    return total.astype(rows.dtype, copy=False)
