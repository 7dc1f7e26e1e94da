"""The attention block of a layer. Sequences are local to their rank, so nothing travels here."""

import numpy as np

from hpcmoe.kernels import rope
from hpcmoe.kernels.attention import attend
from hpcmoe.kernels.linear import linear
from hpcmoe.kernels.norm import rms_norm
from hpcmoe.model.cache import KvCache
from hpcmoe.model.weights import Layer
from hpcmoe.spec import ModelSpec
from hpcmoe.types import Batch


def attention(model: ModelSpec, weights: Layer, layer: int, x: np.ndarray, batch: Batch, cache: KvCache,
              angles: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """x `[T, H]` plus what the attention of `layer` adds to it; keys and values go to the cache.

    `angles` are the cosines and sines of the batch's positions (`kernels.rope.tables`).
    """
    a = model.attention
    both = linear(rms_norm(x, weights.attention_norm, model.norm_eps), weights.qkv)
    q, k, v = np.split(both, [a.query_width, a.query_width + a.kv_width], axis=1)
    q = rope.rotate(q.reshape(-1, a.heads, a.head_dim), *angles)
    k = rope.rotate(k.reshape(-1, a.kv_heads, a.head_dim), *angles)
    v = v.reshape(-1, a.kv_heads, a.head_dim)
    mixed = np.empty((len(x), a.query_width), x.dtype)
    for span in batch.spans:
        rows = slice(span.first, span.first + span.rows)
        keys, values = cache.extend(layer, span.slot, span.cached, k[rows], v[rows])
        mixed[rows] = attend(q[rows], keys, values, a.window)
    return x + linear(mixed, weights.o)
