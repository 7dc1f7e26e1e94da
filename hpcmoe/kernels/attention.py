"""Causal attention of one sequence over its cache."""

import numpy as np

BLOCK = 1 << 22
"""Scores that are held at once."""


def attend(q: np.ndarray, k: np.ndarray, v: np.ndarray, window: int) -> np.ndarray:
    """The last n tokens of a sequence look at all m of it.

    q `[n, heads, d]`, k and v `[kv_heads, m, d]`; a token sees itself and those before it, and
    only the last `window` of them unless that is 0. Returns `[n, heads * d]` of q's dtype.
    """
    n, heads, d = q.shape
    kv_heads, m, _ = k.shape
    group = heads // kv_heads
    wide_k, wide_v = k.astype(np.float32, copy=False), v.astype(np.float32, copy=False)
    out = np.empty((n, heads * d), q.dtype)
    step = max(1, BLOCK // (heads * m))
    for first in range(0, n, step):
        part = q[first:first + step].astype(np.float32, copy=False)
        rows = len(part)
        grouped = part.reshape(rows, kv_heads, group, d).transpose(1, 2, 0, 3).reshape(kv_heads, group * rows, d)
        scores = _rounded(grouped @ wide_k.transpose(0, 2, 1), q.dtype) * np.float32(d ** -0.5)
        scores = _rounded(scores, q.dtype).reshape(kv_heads, group, rows, m)
        _mask(scores, m - n + first, window)
        mixed = _rounded(_softmax(scores), q.dtype).reshape(kv_heads, group * rows, m) @ wide_v
        mixed = mixed.reshape(kv_heads, group, rows, d).transpose(2, 0, 1, 3)
        out[first:first + rows] = mixed.reshape(rows, heads * d)
    return out


def _mask(scores: np.ndarray, first: int, window: int) -> None:
    """Hides the keys that a query does not see; `first` is the position of the first query."""
    rows, m = scores.shape[-2:]
    query, key = np.arange(first, first + rows)[:, None], np.arange(m)
    hidden = key > query
    if window:
        hidden |= key <= query - window
    np.copyto(scores, -np.inf, where=hidden)


def _softmax(scores: np.ndarray) -> np.ndarray:
    scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
    scores /= scores.sum(axis=-1, keepdims=True)
    return scores


def _rounded(x: np.ndarray, dtype: np.dtype) -> np.ndarray:
    return x.astype(dtype, copy=False).astype(np.float32, copy=False)
