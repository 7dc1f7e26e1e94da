"""Attention with a latent; latent.cu, absorbed.cu. Twins: `model.latent`, `model.cache`.

The plain form is cuDNN's, for long spans; the absorbed one is ours, for single tokens, and for all where bits count.
"""

from math import e, log2

import cupy
import numpy as np

from hpcmoe.device.attending import Sight, open_cudnn
from hpcmoe.device.attention import ROPE_HEADS, rotations, see
from hpcmoe.device.cuda import is_hopper, launch
from hpcmoe.device.heads import Heads
from hpcmoe.device.scratch import ABSORBED, TOGETHER, WORKERS, at_once, pieces, whole_blocks
from hpcmoe.kernels.rows import alone
from hpcmoe.spec import Attention, Latent, ModelSpec, latent_of

SHARED = 2 * (3 * 64 * sum(ABSORBED) + 64 * 64) + 1024
"""Bytes of shared memory of a block of absorbed.cu."""
JOINS = 512
"""Blocks of `latent.join`, about."""


class LatentCache:
    """Vectors and turned keys, `[L, slots, length, rank + rotary_dim]` uint16, and the rotations of all positions."""

    def __init__(self, model: ModelSpec, slots: int, length: int) -> None:
        c, length = latent_of(model), whole_blocks(length)
        self.kept = cupy.zeros((model.layers, slots, length, c.rank + c.rotary_dim), np.uint16)
        self.cos, self.sin = rotations(model.attention, length)


def keep(model: ModelSpec, q: cupy.ndarray, both: cupy.ndarray, weight: cupy.ndarray, cache: LatentCache, layer: int,
         slot: cupy.ndarray, position: cupy.ndarray) -> None:
    """Turns what turns of queries q `[T or more, heads * query_dim]`, in place, and puts what is kept of tokens T into
    the cache.

    both `[T, rank + rotary_dim]` uint16: the vector before its norm, whose weight is `[rank]` float32, and the key;
    slot and position `[T]` int32.
    """
    a, c = model.attention, latent_of(model)
    launch("latent.keep", (len(both), 1 + -(-a.heads // ROPE_HEADS)), q, both, weight, cache.kept[layer], slot,
           position, cache.cos, cache.sin, a.heads, a.head_dim, c.rotary_dim, c.rank, cache.kept.shape[2], c.norm_eps,
           threads=32 * ROPE_HEADS)


class LatentAttending:
    """Attention with a latent on one stream, as `attending.Attending`."""

    def __init__(self, model: ModelSpec, cache: LatentCache, stream: cupy.cuda.Stream, heads: Heads) -> None:
        self._model, self._cache, self._multiply = model, cache, heads
        a, c, length = model.attention, latent_of(model), cache.kept.shape[2]
        dims = a.query_dim, c.value_dim
        self._together = at_once(a.heads, sum(dims), length)
        self._prefill = open_cudnn(a, self._together, self._together, length, *dims, {0}, stream)
        if self._prefill:  # zeros: as in the cache of keys and values
            self._k, self._v = (cupy.zeros((self._together, length, d), np.uint16) for d in dims)
        fits = (c.rank, c.rotary_dim) == ABSORBED and a.head_dim % 8 == 0
        self._absorbed = Absorbed(a, c) if fits and is_hopper() else None

    @property
    def by_cudnn(self) -> bool:
        """Whether long spans are cuDNN's."""
        return self._prefill is not None

    def __call__(self, q: cupy.ndarray, kv_b: cupy.ndarray, layer: int, slot: cupy.ndarray, position: cupy.ndarray,
                 sight: Sight, out: cupy.ndarray) -> None:
        """Tokens T look at their own sequences in the cache.

        q `[T + BLOCK, heads * query_dim]` and out `[T + BLOCK, heads * value_dim]` uint16, T where no span is long;
        kv_b as in `model.weights`; slot and position `[T]` int32.
        """
        a, c, T = self._model.attention, latent_of(self._model), len(slot)
        by = kv_b.reshape(a.heads, -1, c.rank)
        for number, s in enumerate(sight.spans):
            self._expanded(q[s.first:], by, layer, s.slot, s.rows, s.cached, sight.lengths[number], out[s.first:])
        step = pieces(a.heads, c.rank)
        for first in range(0, T if sight.row is None else len(sight.row), step):
            part = slice(first, min(T, first + step))
            if sight.row is None:
                self._one_by_one(q[part], by, layer, slot[part], position[part], out[part])
            else:
                row = sight.row[part]
                answers = cupy.empty((len(row), out.shape[1]), out.dtype)
                self._one_by_one(q[row], by, layer, slot[row], position[row], answers)
                out[row] = answers

    def _expanded(self, q: cupy.ndarray, by: cupy.ndarray, layer: int, slot: int, rows: int, cached: int,
                  lengths: cupy.ndarray, out: cupy.ndarray) -> None:
        """The plain form, of the last `rows` tokens of a sequence, some heads after others; by
        `[heads, head_dim + value_dim, rank]`."""
        a, c, end = self._model.attention, latent_of(self._model), cached + rows
        assert self._prefill is not None
        known = self._cache.kept[layer, slot, :end]
        for first in range(0, a.heads, self._together):
            some = by[first:first + self._together]
            vector = cupy.broadcast_to(known[:, None, :c.rank], (end, len(some), c.rank))
            keys, values = (part[:, :end].transpose(1, 0, 2) for part in (self._k, self._v))
            self._multiply(vector, some[:, :a.head_dim], keys[..., :a.head_dim])
            self._multiply(vector, some[:, a.head_dim:], values)
            keys[..., a.head_dim:] = known[:, None, c.rank:]
            self._prefill(q, self._k, self._v, rows, cached, lengths, out, first=first)

    def _one_by_one(self, q: cupy.ndarray, by: cupy.ndarray, layer: int, slot: cupy.ndarray, position: cupy.ndarray,
                    out: cupy.ndarray) -> None:
        """The absorbed form: q `[n, heads * query_dim]`, out `[n, heads * value_dim]`."""
        a, c, n = self._model.attention, latent_of(self._model), len(slot)
        q, kept = q.reshape(n, a.heads, -1), self._cache.kept[layer]
        inward, outward = by[:, :a.head_dim].transpose(0, 2, 1), by[:, a.head_dim:]
        mixed = cupy.empty((n, a.heads, c.rank), np.uint16)
        if self._absorbed and not alone():
            vectors = cupy.empty((n, a.heads, c.rank), np.uint16)
            self._multiply(q[..., :a.head_dim], inward, vectors)
            self._absorbed(vectors, q[..., a.head_dim:], kept, slot, position, mixed)
        else:
            whole = cupy.empty((n, a.heads, c.rank + c.rotary_dim), np.uint16)
            self._multiply(q[..., :a.head_dim], inward, whole[..., :c.rank])
            whole[..., c.rank:] = q[..., a.head_dim:]
            see(whole.reshape(n, -1), kept, kept, slot, position, mixed.reshape(n, -1), 1, c.rank, 0, a.scale)
        self._multiply(mixed, outward, out.reshape(n, a.heads, -1))


class Absorbed:
    """The kernel for vectors and turned keys as wide as `ABSORBED`, and the parts of its sums."""

    def __init__(self, a: Attention, c: Latent) -> None:
        self._scale, self._tiles = a.scale * log2(e), -(-a.heads // TOGETHER)
        most = cupy.cuda.Device().attributes["MultiProcessorCount"]
        self._workers = max(1, min(most, WORKERS) // self._tiles)
        cells = 2 * self._workers, self._tiles, TOGETHER
        self._parts, self._tops = cupy.empty((*cells, c.rank), np.float32), cupy.empty((*cells, 2), np.float32)

    def __call__(self, q: cupy.ndarray, turned: cupy.ndarray, kept: cupy.ndarray, slot: cupy.ndarray,
                 position: cupy.ndarray, out: cupy.ndarray) -> None:
        """Each token sees its own sequence up to itself: q and out `[n, heads, rank]`, turned `[n, heads, rotary_dim]`,
        a view whose last values are neighbours, kept `[slots, length, rank + rotary_dim]`, all uint16; slot and
        position `[n]` int32. Sums are cut where work is shared out, so that a batch has a part in the last bits."""
        (n, heads, _), (step, apart, _) = q.shape, turned.strides
        begun, each = cupy.empty((n, 4), np.int32), 1 if n * heads <= JOINS else 4 * -(-n * heads // (4 * JOINS))
        launch("absorbed.absorbed", (self._tiles, self._workers), q, turned, kept, slot, position, out, self._parts,
               self._tops, begun, n, heads, kept.shape[1], step // 2, apart // 2, self._scale, threads=384,
               shared=SHARED)
        launch("latent.join", (n, -(-heads // each)), self._parts, self._tops, begun, out, heads, each, threads=512)
