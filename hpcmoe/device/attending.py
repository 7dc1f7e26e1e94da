"""Which kernel attends to which tokens: cuDNN to long spans, our own to single tokens, and to all where bits count."""

from dataclasses import dataclass

import cupy
import numpy as np

from hpcmoe.device.attention import KvCache, attend, decode
from hpcmoe.device.cuda import Mirror
from hpcmoe.kernels.attention import SHORT
from hpcmoe.kernels.rows import alone
from hpcmoe.spec import ModelSpec
from hpcmoe.types import Batch, Span


@dataclass(frozen=True)
class Sight:
    """Who sees what in a micro-batch."""

    row: cupy.ndarray | None
    """`[n]` int32: the tokens of short spans; None where that is all"""
    spans: tuple[Span, ...]
    """the long ones"""
    lengths: cupy.ndarray
    """`[len(spans), 2]` int32: their queries and keys"""


class Attending:
    """Attention on one stream."""

    def __init__(self, model: ModelSpec, cache: KvCache, stream: cupy.cuda.Stream) -> None:
        self._model, self._cache = model, cache
        self._prefill = _open_cudnn(model, cache, stream) if model.attention.head_dim % 8 == 0 else None

    @property
    def by_cudnn(self) -> bool:
        """Whether long spans are cuDNN's."""
        return self._prefill is not None

    def look(self, batch: Batch, row: Mirror, lengths: Mirror) -> Sight:
        """The sight of a batch, for all layers; the mirrors carry it over."""
        spans = () if self._prefill is None or alone() else tuple(s for s in batch.spans if s.rows > SHORT)
        counts = np.array([(s.rows, s.cached + s.rows) for s in spans], np.int32).reshape(-1, 2)
        there = lengths.send(counts.reshape(-1)).reshape(-1, 2)
        if not spans:
            return Sight(None, spans, there)
        short = np.concatenate([np.arange(0)] + [np.arange(s.first, s.first + s.rows) for s in batch.spans
                                                 if s.rows <= SHORT])
        return Sight(row.send(short), spans, there)

    def __call__(self, q: cupy.ndarray, layer: int, slot: cupy.ndarray, position: cupy.ndarray, sight: Sight,
                 out: cupy.ndarray) -> None:
        """Tokens T look at their own sequences in the cache.

        q and out `[T + BLOCK, heads * head_dim]` uint16, T where no span is long; slot and position `[T]` int32.
        """
        model, cache, T = self._model, self._cache, len(slot)
        if alone() or model.attention.head_dim % 8:
            return attend(model, q[:T], cache, layer, slot, position, out[:T])
        for number, s in enumerate(sight.spans):
            assert self._prefill is not None
            self._prefill(q[s.first:], layer, s.slot, s.rows, s.cached, sight.lengths[number], out[s.first:])
        decode(model, q[:T], cache, layer, slot, position, out[:T], sight.row)


def _open_cudnn(model: ModelSpec, cache: KvCache, stream: cupy.cuda.Stream):
    """None where it is not installed, or cannot compute the model: then all tokens are decoded, one by one."""
    try:
        import cudnn
    except ImportError:
        return None
    from hpcmoe.device.prefill import Prefill
    try:
        return Prefill(model, cache, stream)
    except cudnn.cudnnGraphNotSupportedError:
        return None
