"""Attention with a latent (MLA): one vector per token, and one turned key, stand for the keys and values of all heads.

DeepSeek-AI, "DeepSeek-V2", 2024, section 2.1 and appendix C. In the plain form each head's keys and values are made of
the vectors, and attended to as usual; in the absorbed form the matrices that would make them are moved into the query
and behind the answer, so that all heads attend to the vectors themselves. The plain form takes fewer products for many
tokens, the absorbed one never makes what the cache does not keep.
"""

import numpy as np

from hpcmoe.kernels import rope, rows
from hpcmoe.kernels.attention import SHORT, attend
from hpcmoe.kernels.linear import by_head, linear
from hpcmoe.kernels.norm import rms_norm
from hpcmoe.model.cache import LatentCache
from hpcmoe.model.weights import LatentAttention
from hpcmoe.spec import Attention, Latent, ModelSpec, latent_of
from hpcmoe.types import Batch


def mix(model: ModelSpec, weights: LatentAttention, layer: int, x: np.ndarray, batch: Batch, cache: LatentCache,
        angles: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """The answers of all heads to normed tokens x `[T, H]` -> `[T, heads * value_dim]`"""
    a, c = model.attention, latent_of(model)
    plain, turned = queries(a, c, weights, x)
    turned, kept = rope.rotate(turned, *angles), _kept(c, weights, x, angles)
    mixed = np.empty((len(x), a.mixed_width), x.dtype)
    for span in batch.spans:
        part = slice(span.first, span.first + span.rows)
        known = cache.extend(layer, span.slot, span.cached, kept[part])
        # computed alone, rows must not depend on how a prompt is cut
        form = absorbed if rows.alone() or span.rows <= SHORT else expanded
        mixed[part] = form(a, c, weights.kv_b, plain[part], turned[part], known)
    return mixed


def queries(a: Attention, c: Latent, weights: LatentAttention, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What does not turn of each head's query, `[T, heads, head_dim]`, and what will, `[T, heads, rotary_dim]`."""
    if weights.q_a is not None:
        assert weights.q_a_norm is not None
        x = rms_norm(linear(x, weights.q_a), weights.q_a_norm, c.norm_eps)
    q = linear(x, weights.q).reshape(-1, a.heads, a.query_dim)
    return q[..., :a.head_dim], q[..., a.head_dim:]


def _kept(c: Latent, weights: LatentAttention, x: np.ndarray, angles: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """`[T, rank + rotary_dim]`: what the cache keeps of tokens, the normed vector and the turned key."""
    both = linear(x, weights.kv_a)
    vector = rms_norm(both[:, :c.rank], weights.kv_a_norm, c.norm_eps)
    return np.concatenate([vector, rope.rotate(both[:, None, c.rank:], *angles)[:, 0]], axis=1)


def expanded(a: Attention, c: Latent, kv_b: np.ndarray, plain: np.ndarray, turned: np.ndarray,
             known: np.ndarray) -> np.ndarray:
    """The plain form, for the last n tokens of the m in known `[m, rank + rotary_dim]`; -> `[n, heads * value_dim]`"""
    both = linear(known[:, :c.rank], kv_b).reshape(len(known), a.heads, -1).transpose(1, 0, 2)
    key = np.broadcast_to(known[:, c.rank:], (a.heads, len(known), c.rotary_dim))
    return attend(np.concatenate([plain, turned], axis=2), np.concatenate([both[..., :a.head_dim], key], axis=2),
                  both[..., a.head_dim:], 0, a.scale)


def absorbed(a: Attention, c: Latent, kv_b: np.ndarray, plain: np.ndarray, turned: np.ndarray,
             known: np.ndarray) -> np.ndarray:
    """The same without keys and values: query times W_UK, vectors as both, W_UV behind the answer."""
    by = kv_b.reshape(a.heads, -1, c.rank)
    q = by_head(plain, by[:, :a.head_dim].transpose(0, 2, 1))
    mixed = attend(np.concatenate([q, turned], axis=2), known[None], known[None, :, :c.rank], 0, a.scale)
    return by_head(mixed.reshape(-1, a.heads, c.rank), by[:, a.head_dim:]).reshape(len(plain), -1)
