"""Rotary positions, the cache, attention; attention.cu. Twins: `kernels.rope`, `model.cache`, `kernels.attention`."""

import cupy
import numpy as np

from hpcmoe import array
from hpcmoe.device.cuda import launch
from hpcmoe.device.scratch import parts, whole_blocks
from hpcmoe.kernels import rope
from hpcmoe.spec import Attention, ModelSpec

WIDEST, WIDEST_LATENT = 256, 768
"""Values of a head at most; of a latent's vector and its turned key."""
ROPE_HEADS = 8
"""Heads of a block, one for each warp."""


class KvCache:
    """Keys and values, `[L, slots, kv_heads, length, head_dim]` uint16 each, and the rotations of all positions."""

    def __init__(self, model: ModelSpec, slots: int, length: int) -> None:
        a, length = model.attention, whole_blocks(length)
        # zeros: libraries multiply what lies behind a sequence by 0, which a NaN would survive
        self.k, self.v = (cupy.zeros((model.layers, slots, a.kv_heads, length, a.head_dim), np.uint16) for _ in "kv")
        self.cos, self.sin = rotations(a, length)
        self.parts = cupy.empty(parts(a.heads, a.head_dim, slots, length), np.float32)
        self.tickets = cupy.zeros(self.parts.shape[:2], np.int32)


def rotations(a: Attention, length: int) -> tuple[cupy.ndarray, cupy.ndarray]:
    """Cosines and sines of all positions, `[length, a.turning / 2]` uint16."""
    cos, sin = (cupy.asarray(angle.view(np.uint16).reshape(length, -1))
                for angle in rope.tables(np.arange(length), a, array.BFLOAT16))
    return cos, sin


def extend(model: ModelSpec, qkv: cupy.ndarray, cache: KvCache, layer: int, slot: cupy.ndarray,
           position: cupy.ndarray, q: cupy.ndarray) -> None:
    """Turns queries and keys, and puts keys and values of tokens T into the cache.

    qkv `[T, (heads + 2 kv_heads) * head_dim]` uint16; slot and position `[T]` int32; queries go to q
    `[T, heads * head_dim]`.
    """
    a = model.attention
    bound = float(np.float32(array.BFLOAT16.type(a.clip))) if a.clip else 0.0
    grid = len(qkv), -(-(a.heads + 2 * a.kv_heads) // ROPE_HEADS)
    launch("attention.rope", grid, qkv, q, cache.k[layer], cache.v[layer], slot, position, cache.cos,
           cache.sin, a.heads, a.kv_heads, a.head_dim, a.turning, cache.k.shape[3], bound, threads=32 * ROPE_HEADS)


def attend(model: ModelSpec, q: cupy.ndarray, cache: KvCache, layer: int, slot: cupy.ndarray, position: cupy.ndarray,
           out: cupy.ndarray, sinks: cupy.ndarray | None = None) -> None:
    """Each token sees its own sequence up to itself, with every rounding of the twin: q and out
    `[T, heads * head_dim]` uint16, sinks `[heads]` float32. Three passes over the keys: for reproducible jobs."""
    a = model.attention
    see(q, cache.k[layer], cache.v[layer], slot, position, out, a.kv_heads, a.head_dim, a.window_in(layer), a.scale,
        sinks)


def see(q: cupy.ndarray, k: cupy.ndarray, v: cupy.ndarray, slot: cupy.ndarray, position: cupy.ndarray,
        out: cupy.ndarray, kv_heads: int, values: int, window: int, scale: float,
        sinks: cupy.ndarray | None = None) -> None:
    """`attend` to keys and values `[slots, kv_heads, length, d]`, the first `values` of which are a value's:
    q `[T, heads * d]`, out `[T, heads * values]`."""
    *_, length, d = k.shape
    heads = q.shape[1] // d
    launch(f"attention.attend_{8 if d <= WIDEST else 24}", (len(q), heads), q, k, v, slot, position, sinks, out, heads,
           kv_heads, d, values, length, window, scale, threads=128)


def decode(model: ModelSpec, q: cupy.ndarray, cache: KvCache, layer: int, slot: cupy.ndarray, position: cupy.ndarray,
           out: cupy.ndarray, row: cupy.ndarray | None = None, sinks: cupy.ndarray | None = None) -> None:
    """As `attend`, in float32 up to the end and one pass; of tokens `row` `[n]` int32 only, if given. Heads have a
    multiple of 8 values."""
    a = model.attention
    group = 1 << (-(-a.head_dim // 8) - 1).bit_length()
    count = len(q if row is None else row)
    most, _, splits, _ = cache.parts.shape
    for first in range(0, count, most):
        part = slice(first, min(first + most, count))
        tokens = (q[part], slot[part], position[part], out[part], None) if row is None else (
            q, slot, position, out, row[part])
        launch("attention.decode", (part.stop - first, a.heads, splits), tokens[0], cache.k[layer], cache.v[layer],
               tokens[1], tokens[2], tokens[4], sinks, tokens[3], cache.parts, cache.tickets, a.heads, a.kv_heads,
               a.head_dim, cache.k.shape[3], a.window_in(layer), a.scale, group, threads=128)
