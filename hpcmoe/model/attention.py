"""The attention block of a layer. Sequences are local to their rank, so nothing travels here."""

import numpy as np

from hpcmoe.kernels import rope
from hpcmoe.kernels.attention import attend
from hpcmoe.kernels.linear import linear
from hpcmoe.kernels.norm import rms_norm
from hpcmoe.model.cache import KvCache
from hpcmoe.model.weights import Attention
from hpcmoe.spec import ModelSpec
from hpcmoe.types import Batch


def attention(model: ModelSpec, weights: Attention, layer: int, x: np.ndarray, batch: Batch, cache: KvCache,
              angles: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """x `[T, H]` plus what the attention of `layer` adds to it; keys and values go to the cache.

    `angles` are the cosines and sines of the batch's positions (`kernels.rope.tables`).
    """
    a = model.attention
    q, k, v = project(model, weights, rms_norm(x, weights.norm, model.norm_eps))
    q, k = rope.rotate(q, *angles), rope.rotate(k, *angles)
    mixed = np.empty((len(x), a.query_width), x.dtype)
    for span in batch.spans:
        rows = slice(span.first, span.first + span.rows)
        keys, values = cache.extend(layer, span.slot, span.cached, k[rows], v[rows])
        mixed[rows] = attend(q[rows], keys, values, a.window)
    return x + linear(mixed, weights.o)


def project(model: ModelSpec, weights: Attention, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Queries `[T, heads, head_dim]`, keys and values `[T, kv_heads, head_dim]` of normed tokens x `[T, H]`,
    before their rotation."""
    a = model.attention
    q, k, v = np.split(linear(x, weights.qkv, weights.bias), [a.query_width, a.query_width + a.kv_width], axis=1)
    q, k = _normed(q, weights.q_norm, model.norm_eps), _normed(k, weights.k_norm, model.norm_eps)
    if a.clip:
        bound = np.array(a.clip, x.dtype)  # np.clip would make float32 of bfloat16
        q, k, v = (np.minimum(np.maximum(part, -bound), bound) for part in (q, k, v))
    q = q.reshape(-1, a.heads, a.head_dim)
    return q, k.reshape(-1, a.kv_heads, a.head_dim), v.reshape(-1, a.kv_heads, a.head_dim)


def _normed(x: np.ndarray, weight: np.ndarray | None, eps: float) -> np.ndarray:
    """RMS norm of each head, or of the full width, as the weight's length says."""
    if weight is None:
        return x
    return rms_norm(x.reshape(-1, x.shape[1] // len(weight), len(weight)), weight, eps).reshape(x.shape)
