"""Which kernel attends to which tokens: cuDNN to long spans, our own to single tokens, and to all where bits count."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import cupy
import numpy as np

from hpcmoe.device.attention import KvCache, attend, decode
from hpcmoe.device.cuda import Mirror
from hpcmoe.kernels.attention import SHORT
from hpcmoe.kernels.rows import alone
from hpcmoe.spec import Attention, ModelSpec
from hpcmoe.types import Batch, Span

if TYPE_CHECKING:
    from hpcmoe.device.prefill import Prefill


@dataclass(frozen=True)
class Sight:
    """Who sees what in a micro-batch."""

    row: cupy.ndarray | None
    """`[n]` int32: the tokens of short spans; None where that is all"""
    spans: tuple[Span, ...]
    """the long ones"""
    lengths: cupy.ndarray
    """`[len(spans), 2]` int32: their queries and keys"""


def look(batch: Batch, long: bool, row: Mirror, lengths: Mirror) -> Sight:
    """The sight of a batch, for all layers; the mirrors carry it over.

    long: whether there is a kernel for many tokens of one sequence.
    """
    spans = tuple(s for s in batch.spans if s.rows > SHORT) if long and not alone() else ()
    counts = np.array([(s.rows, s.cached + s.rows) for s in spans], np.int32).reshape(-1, 2)
    there = lengths.send(counts.reshape(-1)).reshape(-1, 2)
    if not spans:
        return Sight(None, spans, there)
    short = np.concatenate([np.arange(0)] + [np.arange(s.first, s.first + s.rows) for s in batch.spans
                                             if s.rows <= SHORT])
    return Sight(row.send(short), spans, there)


class Attending:
    """Attention on one stream."""

    def __init__(self, model: ModelSpec, cache: KvCache, stream: cupy.cuda.Stream) -> None:
        self._model, self._cache, a = model, cache, model.attention
        self._prefill = open_cudnn(a, a.heads, a.kv_heads, cache.k.shape[3], a.head_dim, a.head_dim,
                                   {a.window_in(layer) for layer in range(model.layers)}, stream)

    @property
    def by_cudnn(self) -> bool:
        """Whether long spans are cuDNN's."""
        return self._prefill is not None

    def __call__(self, q: cupy.ndarray, layer: int, slot: cupy.ndarray, position: cupy.ndarray, sight: Sight,
                 out: cupy.ndarray, sinks: cupy.ndarray | None = None) -> None:
        """Tokens T look at their own sequences in the cache.

        q and out `[T + BLOCK, heads * head_dim]` uint16, T where no span is long; slot and position `[T]` int32;
        sinks `[heads]` float32.
        """
        model, cache, T = self._model, self._cache, len(slot)
        if alone() or model.attention.head_dim % 8:
            return attend(model, q[:T], cache, layer, slot, position, out[:T], sinks)
        for number, s in enumerate(sight.spans):
            assert self._prefill is not None
            self._prefill(q[s.first:], cache.k[layer, s.slot], cache.v[layer, s.slot], s.rows, s.cached,
                          sight.lengths[number], out[s.first:], model.attention.window_in(layer), sinks=sinks)
        decode(model, q[:T], cache, layer, slot, position, out[:T], sight.row, sinks)


def open_cudnn(a: Attention, heads: int, kv_heads: int, length: int, key_dim: int, value_dim: int,
               windows: Iterable[int], stream: cupy.cuda.Stream) -> "Prefill | None":
    """For `heads` of its heads at once; None where it is not installed, or cannot compute them: then all tokens are
    decoded, one by one."""
    try:
        from hpcmoe.device.prefill import Shape, open_prefill
    except ImportError:
        return None
    return open_prefill(Shape(heads, a.heads, kv_heads, length, key_dim, value_dim, a.scale, a.sinks), windows, stream)
