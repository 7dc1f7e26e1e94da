"""Causal attention of one sequence over its cache."""

import numpy as np

from hpcmoe.kernels import rows

BLOCK = 1 << 22
"""Scores that are held at once."""
SHORT = 8
"""Tokens of a span up to which a device decodes each by itself: its kernels for more work on whole blocks."""


def attend(q: np.ndarray, k: np.ndarray, v: np.ndarray, window: int, scale: float,
           sinks: np.ndarray | None = None) -> np.ndarray:
    """The last n tokens of a sequence look at all m of it.

    q `[n, heads, d]`, k `[kv_heads, m, d]`, v `[kv_heads, m, dv]`; a token sees itself and those before it, and
    only the last `window` of them unless that is 0; products of queries and keys are multiplied by `scale`.
    sinks `[heads]` float32 take part in the softmax beside them. Returns `[n, heads * dv]` of q's dtype.
    """
    n, heads, _ = q.shape
    m = k.shape[1]
    wide_k, wide_v = k.astype(np.float32, copy=False), v.astype(np.float32, copy=False)
    out = np.empty((n, heads * v.shape[2]), q.dtype)
    step = 1 if rows.alone() else max(1, BLOCK // (heads * m))
    for first in range(0, n, step):
        part = slice(first, min(first + step, n))
        last = m - n + part.stop if rows.alone() else m  # alone, a query is multiplied by the keys that it sees only
        begin = max(0, last - window) if rows.alone() and window else 0
        scores = _scores(q[part], wide_k[:, begin:last], m - n + first - begin, window, scale)
        out[part] = _mix(scores, wide_v[:, begin:last], q.dtype, sinks)
    return out


def _scores(q: np.ndarray, k: np.ndarray, position: int, window: int, scale: float) -> np.ndarray:
    """Queries `[rows, heads, d]`, the first at `position` among the keys -> `[kv_heads, group, rows, m]` float32."""
    count, heads, d = q.shape
    kv_heads, m, _ = k.shape
    group = heads // kv_heads
    wide = q.astype(np.float32, copy=False).reshape(count, kv_heads, group, d).transpose(1, 2, 0, 3)
    scores = _rounded(wide.reshape(kv_heads, group * count, d) @ k.transpose(0, 2, 1), q.dtype) * np.float32(scale)
    scores = _rounded(scores, q.dtype).reshape(kv_heads, group, count, m)
    _mask(scores, position, window)
    return scores


def _mix(scores: np.ndarray, v: np.ndarray, dtype: np.dtype, sinks: np.ndarray | None) -> np.ndarray:
    """`[rows, heads * dv]` of `dtype` from scores `[kv_heads, group, rows, m]` and values `[kv_heads, m, dv]`."""
    kv_heads, group, count, m = scores.shape
    if sinks is None:
        weights = _softmax(scores)
    else:
        weights = _softmax_beside(scores, sinks.reshape(kv_heads, group, 1, 1), dtype)
    mixed = _rounded(weights, dtype).reshape(kv_heads, group * count, m) @ v
    mixed = mixed.reshape(kv_heads, group, count, -1).transpose(2, 0, 1, 3)
    return mixed.reshape(count, -1).astype(dtype, copy=False)


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


def _softmax_beside(scores: np.ndarray, sinks: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """The same with one more logit for each head, whose own weight is dropped; rounded where GPT-OSS's module does."""
    most = np.maximum(scores.max(axis=-1, keepdims=True), sinks)
    scores = np.exp(_rounded(scores - most, dtype))
    return scores / (scores.sum(axis=-1, keepdims=True) + np.exp(_rounded(sinks - most, dtype)))


def _rounded(x: np.ndarray, dtype: np.dtype) -> np.ndarray:
    return x.astype(dtype, copy=False).astype(np.float32, copy=False)
