"""Rotary positions, the cache, attention; attention.cu. Twins: `kernels.rope`, `model.cache`, `kernels.attention`."""

import cupy
import numpy as np

from hpcmoe import array
from hpcmoe.device.cuda import launch
from hpcmoe.kernels import rope
from hpcmoe.spec import ModelSpec

WIDEST = 256
"""Values of a head at most."""


class KvCache:
    """Keys and values, `[L, slots, kv_heads, length, head_dim]` uint16 each, and the rotations of all positions."""

    def __init__(self, model: ModelSpec, slots: int, length: int) -> None:
        a = model.attention
        self.k, self.v = (cupy.empty((model.layers, slots, a.kv_heads, length, a.head_dim), np.uint16) for _ in "kv")
        angles = rope.tables(np.arange(length), rope.frequencies(a.head_dim, a.rope_theta), array.BFLOAT16)
        self.cos, self.sin = (cupy.asarray(angle.view(np.uint16).reshape(length, -1)) for angle in angles)


def extend(model: ModelSpec, qkv: cupy.ndarray, cache: KvCache, layer: int, slot: cupy.ndarray,
           position: cupy.ndarray) -> cupy.ndarray:
    """Turns queries and keys, and puts keys and values of tokens T into the cache.

    qkv `[T, (heads + 2 kv_heads) * head_dim]` uint16; slot and position `[T]` int32 -> queries `[T, heads * head_dim]`.
    """
    a = model.attention
    q = cupy.empty((len(qkv), a.query_width), np.uint16)
    bound = float(np.float32(array.BFLOAT16.type(a.clip))) if a.clip else 0.0
    launch("attention.rope", len(qkv), qkv, q, cache.k[layer], cache.v[layer], slot, position, cache.cos, cache.sin,
           a.heads, a.kv_heads, a.head_dim, cache.k.shape[3], bound)
    return q


def attend(model: ModelSpec, q: cupy.ndarray, cache: KvCache, layer: int, slot: cupy.ndarray,
           position: cupy.ndarray) -> cupy.ndarray:
    """Each token sees its own sequence up to itself: q `[T, heads * head_dim]` -> the same shape, uint16."""
    a, out = model.attention, cupy.empty_like(q)
    launch("attention.attend", (len(q), a.heads), q, cache.k[layer], cache.v[layer], slot, position, out, a.heads,
           a.kv_heads, a.head_dim, cache.k.shape[3], a.window, a.head_dim ** -0.5, threads=128)
    return out
