"""Causal attention of one sequence over its cache."""

import numpy as np

from hpcmoe.kernels import rows

BLOCK = 1 << 22
"""Scores that are held at once."""
SHORT = 8
"""Tokens of a span up to which a device decodes each by itself: its kernels for more work on whole blocks."""


def attend(q: np.ndarray, k: np.ndarray, v: np.ndarray, window: int) -> np.ndarray:
    """The last n tokens of a sequence look at all m of it.

    q `[n, heads, d]`, k and v `[kv_heads, m, d]`; a token sees itself and those before it, and
    only the last `window` of them unless that is 0. Returns `[n, heads * d]` of q's dtype.
    """
    n, heads, d = q.shape
    m = k.shape[1]
    wide_k, wide_v = k.astype(np.float32, copy=False), v.astype(np.float32, copy=False)
    out = np.empty((n, heads * d), q.dtype)
    step = 1 if rows.alone() else max(1, BLOCK // (heads * m))
    for first in range(0, n, step):
        part = slice(first, min(first + step, n))
        last = m - n + part.stop if rows.alone() else m  # alone, a query is multiplied by the keys that it sees only
        begin = max(0, last - window) if rows.alone() and window else 0
        out[part] = _block(q[part], wide_k[:, begin:last], wide_v[:, begin:last], m - n + first - begin, window)
    return out


def _block(q: np.ndarray, k: np.ndarray, v: np.ndarray, position: int, window: int) -> np.ndarray:
    """Queries `[rows, heads, d]`, the first at `position` among the keys -> `[rows, heads * d]` of q's dtype."""
    count, heads, d = q.shape
    kv_heads, m, _ = k.shape
    group = heads // kv_heads
    wide = q.astype(np.float32, copy=False).reshape(count, kv_heads, group, d).transpose(1, 2, 0, 3)
    scores = _rounded(wide.reshape(kv_heads, group * count, d) @ k.transpose(0, 2, 1), q.dtype) * np.float32(d ** -0.5)
    scores = _rounded(scores, q.dtype).reshape(kv_heads, group, count, m)
    _mask(scores, position, window)
    mixed = _rounded(_softmax(scores), q.dtype).reshape(kv_heads, group * count, m) @ v
    mixed = mixed.reshape(kv_heads, group, count, d).transpose(2, 0, 1, 3)
    return mixed.reshape(count, heads * d).astype(q.dtype, copy=False)


def _mask(scores: np.ndarray, first: int, window: int) -> None:
    """Hides the keys that a query does not see; `first` is the position of the first query."""
    count, m = scores.shape[-2:]
    query, key = np.arange(first, first + count)[:, None], np.arange(m)
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
