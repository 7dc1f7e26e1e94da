"""The attention block of a layer. Sequences are local to their rank, so nothing travels here."""

import numpy as np

from hpcmoe.kernels import rope
from hpcmoe.kernels.attention import attend
from hpcmoe.kernels.linear import linear
from hpcmoe.kernels.norm import rms_norm
from hpcmoe.model import latent
from hpcmoe.model.cache import Cache, KvCache, LatentCache
from hpcmoe.model.norm import norm
from hpcmoe.model.weights import Attention, LatentAttention
from hpcmoe.spec import ModelSpec
from hpcmoe.types import Batch

Angles = tuple[np.ndarray, np.ndarray]


def attention(model: ModelSpec, weights: Attention | LatentAttention, layer: int, x: np.ndarray, batch: Batch,
              cache: Cache, angles: Angles) -> np.ndarray:
    """x `[T, H]` plus what the attention of `layer` adds to it; what it keeps of its tokens goes to the cache.

    `angles` are the cosines and sines of the batch's positions (`kernels.rope.tables`).
    """
    mixed = mix(model, weights, layer, norm(model, x, weights.norm), batch, cache, angles)
    return x + linear(mixed, weights.o, weights.o_bias)


def mix(model: ModelSpec, weights: Attention | LatentAttention, layer: int, x: np.ndarray, batch: Batch,
        cache: Cache, angles: Angles) -> np.ndarray:
    """The answers of all heads to normed tokens x `[T, H]` -> `[T, mixed_width]`"""
    if isinstance(weights, LatentAttention):
        assert isinstance(cache, LatentCache)
        return latent.mix(model, weights, layer, x, batch, cache, angles)
    assert isinstance(cache, KvCache)
    return _grouped(model, weights, layer, x, batch, cache, angles)


def _grouped(model: ModelSpec, weights: Attention, layer: int, x: np.ndarray, batch: Batch, cache: KvCache,
             angles: Angles) -> np.ndarray:
    a = model.attention
    q, k, v = project(model, weights, x)
    q, k = rope.rotate(q, *angles), rope.rotate(k, *angles)
    mixed = np.empty((len(x), a.mixed_width), x.dtype)
    for span in batch.spans:
        rows = slice(span.first, span.first + span.rows)
        keys, values = cache.extend(layer, span.slot, span.cached, k[rows], v[rows])
        mixed[rows] = attend(q[rows], keys, values, a.window_in(layer), a.scale, weights.sinks)
    return mixed


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
