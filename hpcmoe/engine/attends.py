"""What a GPU computes of attention: queries, keys and values, or a latent; the cache; the answers of all heads."""

from dataclasses import dataclass

import cupy
import numpy as np

from hpcmoe.device import attention, latent, norm
from hpcmoe.device.attending import Attending, Sight, look
from hpcmoe.device.attention import KvCache
from hpcmoe.device.cuda import Mirror
from hpcmoe.device.gemm import Gemm
from hpcmoe.device.heads import Heads
from hpcmoe.device.latent import LatentAttending, LatentCache
from hpcmoe.device.scratch import BLOCK
from hpcmoe.model.weights import Attention, LatentAttention
from hpcmoe.spec import ModelSpec, latent_of
from hpcmoe.types import Batch

Cache = KvCache | LatentCache


def open_cache(model: ModelSpec, slots: int, length: int) -> Cache:
    """The cache that the model's attention needs."""
    return (LatentCache if model.attention.latent else KvCache)(model, slots, length)


@dataclass(frozen=True)
class Tokens:
    """Where the tokens of a micro-batch are, and what they see."""

    slot: cupy.ndarray
    """`[T]` int32"""
    position: cupy.ndarray
    """`[T]` int32"""
    sight: Sight


class Place:
    """Where a micro-batch's `Tokens` are sent to; what graphs read of it never moves."""

    def __init__(self, tokens: int) -> None:
        self._slot, self._position = (Mirror(np.int32, tokens) for _ in range(2))
        self._row, self._lengths = Mirror(np.int32), Mirror(np.int32)

    def send(self, batch: Batch, by_cudnn: bool) -> Tokens:
        """The tokens of a batch."""
        slots = np.repeat([span.slot for span in batch.spans], [span.rows for span in batch.spans])
        return Tokens(self._slot.send(slots), self._position.send(batch.position),
                      look(batch, by_cudnn, self._row, self._lengths))


class Attends:
    """The heads of a model, or a rank's part of them, on one stream, which is current in all calls."""

    def __init__(self, model: ModelSpec, cache: Cache, gemm: Gemm, stream: cupy.cuda.Stream) -> None:
        """`model` has the heads that are computed, and no others."""
        self._model, self._cache, self._gemm = model, cache, gemm
        self._attending = (LatentAttending(model, cache, stream, Heads(stream, gemm.workspace))
                           if isinstance(cache, LatentCache) else Attending(model, cache, stream))

    @property
    def by_cudnn(self) -> bool:
        """Whether long spans are cuDNN's."""
        return self._attending.by_cudnn

    def __call__(self, weights: Attention | LatentAttention, layer: int, tokens: Tokens,
                 normed: cupy.ndarray) -> cupy.ndarray:
        """The answers of all heads to normed tokens `[T, H]` -> `[T, mixed_width]`"""
        a, T = self._model.attention, len(normed)
        room = T + BLOCK if tokens.sight.spans else T
        q, mixed = (cupy.empty((room, width), np.uint16) for width in (a.query_width, a.mixed_width))
        if isinstance(weights, LatentAttention):
            self._with_latent(weights, layer, tokens, normed, q, mixed)
        else:
            self._grouped(weights, layer, tokens, normed, q, mixed)
        return mixed[:T]

    def _grouped(self, weights: Attention, layer: int, tokens: Tokens, normed: cupy.ndarray, q: cupy.ndarray,
                 mixed: cupy.ndarray) -> None:
        """The answers of all heads go to mixed `[T + BLOCK, mixed_width]`; q `[T + BLOCK, query_width]` is room."""
        a, cache = self._model.attention, self._cache
        assert isinstance(cache, KvCache) and isinstance(self._attending, Attending)
        qkv = self._gemm(normed, weights.qkv, bias=weights.bias)
        for first, width, weight in ((0, a.query_width, weights.q_norm), (a.query_width, a.kv_width, weights.k_norm)):
            if weight is not None:
                norm.head_norm(qkv, first, width, weight, self._model.norm_eps)
        attention.extend(self._model, qkv, cache, layer, tokens.slot, tokens.position, q)
        self._attending(q, layer, tokens.slot, tokens.position, tokens.sight, mixed, weights.sinks)

    def _with_latent(self, weights: LatentAttention, layer: int, tokens: Tokens, normed: cupy.ndarray,
                     q: cupy.ndarray, mixed: cupy.ndarray) -> None:
        """As `_grouped`."""
        c, cache, inner = latent_of(self._model), self._cache, normed
        assert isinstance(cache, LatentCache) and isinstance(self._attending, LatentAttending)
        if weights.q_a is not None:
            inner = self._gemm(normed, weights.q_a)
            norm.head_norm(inner, 0, c.query_rank, weights.q_a_norm, c.norm_eps)
        self._gemm(inner, weights.q, q[:len(normed)])
        both = self._gemm(normed, weights.kv_a)
        latent.keep(self._model, q, both, weights.kv_a_norm, cache, layer, tokens.slot, tokens.position)
        self._attending(q, weights.kv_b, layer, tokens.slot, tokens.position, tokens.sight, mixed)
