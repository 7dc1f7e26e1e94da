"""What a GPU computes between two exchanges: embedding, attention, dense blocks, gates; a graph, if it recurs. Then the
next tokens."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import cupy
import numpy as np

from hpcmoe.config import Generate
from hpcmoe.device import attention, choice, latent, norm, rows
from hpcmoe.device.attending import Attending, look
from hpcmoe.device.attention import KvCache
from hpcmoe.device.gate import Map, choose, count_moved, make_map, make_route, order, spread
from hpcmoe.device.gemm import Gemm
from hpcmoe.device.graph import Graphs
from hpcmoe.device.heads import Heads
from hpcmoe.device.latent import LatentAttending, LatentCache
from hpcmoe.device.scratch import BLOCK, RECURRING
from hpcmoe.device.swiglu import swiglu, weigh
from hpcmoe.engine.room import Work
from hpcmoe.engine.timer import Timer
from hpcmoe.exchange.replicas import Near
from hpcmoe.kernels.choice import uniform
from hpcmoe.model.weights import Attention, LatentAttention, Shared, Swiglu, Weights
from hpcmoe.slots import Placement, Placements
from hpcmoe.spec import ModelSpec

Cache = KvCache | LatentCache


def open_cache(model: ModelSpec, slots: int, length: int) -> Cache:
    """The cache that the model's attention needs."""
    return (LatentCache if model.attention.latent else KvCache)(model, slots, length)


class Blocks:
    """A rank's layers but for their exchanges, on one stream, which is current in all calls."""

    def __init__(self, model: ModelSpec, weights: Weights, cache: Cache, placements: Placements, near: Sequence[Near],
                 exact: frozenset[int], stream: cupy.cuda.Stream, timer: Timer) -> None:
        """near `[L]`: of each layer's replicas; exact as in `layer.Segments`."""
        self._exact = exact
        self.model, self.weights, self._cache, self._timer = model, weights, cache, timer
        self._ranks = placements[0].ranks
        self.gemm, self._graphs = Gemm(), Graphs(stream)
        self._attending = (LatentAttending(model, cache, stream, Heads(stream, self.gemm.workspace))
                           if isinstance(cache, LatentCache) else Attending(model, cache, stream))
        made = {id(placement): make_map(placement, to.slot) for placement, to in zip(placements, near) if model.moe}
        self.maps: list[Map | None] = [made.get(id(placement)) for placement in placements]
        self._bias: cupy.ndarray | None = None
        """`[L, E]`, the gates' own included: graphs read it, so it never moves"""
        self.at_home = self._ranks == 1 and model.experts == 1
        """whether rows never leave: the rank has the only expert, so nobody needs to be told of counts"""

    def change(self, layer: int, placement: Placement, near: Near, held: Weights) -> None:
        """See `device.RankSegments`; near: of the layer's replicas. Graphs that know where they were are forgotten."""
        self.weights, self.maps[layer] = held, make_map(placement, near.slot)
        first = max((n + 1 for n in self.exchanged if n < layer), default=0)  # behind the exchange before
        self._graphs.forget(lambda key: key[-1] == first)

    def steer(self, bias: np.ndarray, tokens: int) -> None:
        """See `device.RankSegments`; before the first step, or never. `tokens` are those of a micro-batch at most."""
        if self._bias is None:
            self._own, self._bias = np.zeros_like(bias), cupy.empty(bias.shape, np.float32)
            for own, layer in zip(self._own, self.weights.layers):
                if layer.gate and layer.gate.bias is not None:
                    own[...] = cupy.asnumpy(layer.gate.bias)
            self._plain = make_route(tokens, self._moe.top_k, 1), cupy.empty(bias.shape[1], np.uint64)
        self._bias.set(self._own + bias)

    @property
    def exchanged(self) -> list[int]:
        """The layers whose rows travel."""
        return [] if self.at_home else list(self.model.moe_layers)

    def enter(self, work: Work) -> None:
        """Embedding, and all up to the first gate."""
        batch, room = work.batch, work.room
        slots = np.repeat([span.slot for span in batch.spans], [span.rows for span in batch.spans])
        token, work.slot, work.position = (mirror.send(values) for mirror, values in (
            (room.token, batch.token), (room.slot, slots), (room.position, batch.position)))
        work.x = room.x[:batch.rows]
        work.sight = look(batch, self._attending.by_cudnn, room.row, room.lengths)
        room.load[...] = 0

        def embed_and_on() -> None:
            with self.stage("attention", work, batch.rows):
                rows.take(self.weights.embedding, token, batch.rows, self.model.hidden, work.x)
            self._on(work)
        self._run("enter", work, embed_and_on)

    def go_on(self, work: Work) -> None:
        """All up to the next gate, or to the last layer's end, from the beginning of a layer."""
        self._run("on", work, lambda: self._on(work))

    def _run(self, name: str, work: Work, part) -> None:
        """The part, which leads to the next gate; as a graph where it is likely to come again."""
        begin, T = work.layer, work.batch.rows
        if 0 < T <= RECURRING and all(span.rows == 1 for span in work.batch.spans):
            with self.stage("attention", work, T):
                self._graphs.run((name, work.number, T, begin), part)
        else:
            part()
        work.layer = next((layer for layer in self.exchanged if layer >= begin), self.model.layers)

    def stage(self, name: str, work: Work, count: int) -> AbstractContextManager[None]:
        """The time of what the block gives to the stream counts for stage `name`; within a graph, for the graph's."""
        return nullcontext() if self._timer.inside else self._timer.stage(name, work.layer, work.number, count)

    def _on(self, work: Work) -> None:
        eps, weight_first, T = self.model.norm_eps, self.model.norm_weight_first, work.batch.rows
        for layer in range(work.layer, self.model.layers):
            work.layer, weights, normed = layer, self.weights.layers[layer], work.room.normed[:T]
            with self.stage("attention", work, T):
                mixed = self._attention(work, norm.rms_norm(work.x, weights.attention.norm, eps, None, weight_first))
                norm.add_norm(work.x, mixed, weights.norm, eps, normed, weight_first)
                if weights.dense:
                    norm.add(work.x, self.feed_forward(weights.dense, normed))
                    continue
            self._gate(work, normed)
            if not self.at_home:
                return
            with self.stage("expert", work, T):
                expert, = weights.experts
                answers = self.feed_forward(expert, normed, limit=self._moe.limit)
                shared = self.shared(weights.shared, normed) if weights.shared else None
            with self.stage("combine", work, T):
                rows.combine(work.x, answers, shared, work.room.route, work.room.zero, self._moe.round_weights)

    @property
    def _moe(self):
        assert self.model.moe is not None
        return self.model.moe

    def feed_forward(self, weights: Swiglu, x: cupy.ndarray, out: cupy.ndarray | None = None,
                     limit: float = 0) -> cupy.ndarray:
        """x `[T, H]` -> `[T, H]`, to `out` if given; `limit` as in `spec.Moe`."""
        return swiglu(self.gemm, x, weights.gate_up, weights.down, out, weights.gate_up_bias, weights.down_bias, limit)

    def _attention(self, work: Work, normed: cupy.ndarray) -> cupy.ndarray:
        """What the attention of the layer adds to its tokens, `[T, H]`."""
        a, weights, T = self.model.attention, self.weights.layers[work.layer].attention, work.batch.rows
        room = T + BLOCK if work.sight.spans else T
        q, mixed = (cupy.empty((room, width), np.uint16) for width in (a.query_width, a.mixed_width))
        if isinstance(weights, LatentAttention):
            self._with_latent(work, weights, normed, q, mixed)
        else:
            self._grouped(work, weights, normed, q, mixed)
        return self.gemm(mixed[:T], weights.o, bias=weights.o_bias)

    def _grouped(self, work: Work, weights: Attention, normed: cupy.ndarray, q: cupy.ndarray,
                 mixed: cupy.ndarray) -> None:
        """The answers of all heads go to mixed `[T + BLOCK, mixed_width]`; q `[T + BLOCK, query_width]` is room."""
        a, cache = self.model.attention, self._cache
        assert isinstance(cache, KvCache) and isinstance(self._attending, Attending)
        qkv = self.gemm(normed, weights.qkv, bias=weights.bias)
        for first, width, weight in ((0, a.query_width, weights.q_norm), (a.query_width, a.kv_width, weights.k_norm)):
            if weight is not None:
                norm.head_norm(qkv, first, width, weight, self.model.norm_eps)
        attention.extend(self.model, qkv, cache, work.layer, work.slot, work.position, q)
        self._attending(q, work.layer, work.slot, work.position, work.sight, mixed, weights.sinks)

    def _with_latent(self, work: Work, weights: LatentAttention, normed: cupy.ndarray, q: cupy.ndarray,
                     mixed: cupy.ndarray) -> None:
        """As `_grouped`."""
        c, cache, inner = latent.shape(self.model), self._cache, normed
        assert isinstance(cache, LatentCache) and isinstance(self._attending, LatentAttending)
        if weights.q_a is not None:
            inner = self.gemm(normed, weights.q_a)
            norm.head_norm(inner, 0, c.query_rank, weights.q_a_norm, c.norm_eps)
        self.gemm(inner, weights.q, q[:work.batch.rows])
        both = self.gemm(normed, weights.kv_a)
        latent.keep(self.model, q, both, weights.kv_a_norm, cache, work.layer, work.slot, work.position)
        self._attending(q, weights.kv_b, work.layer, work.slot, work.position, work.sight, mixed)

    def _gate(self, work: Work, normed: cupy.ndarray) -> None:
        weights, route = self.weights.layers[work.layer].gate, work.room.route
        at, T = self.maps[work.layer], work.batch.rows
        assert weights is not None and at is not None
        with self.stage("gate", work, T):
            logits = self.gemm(normed, weights.weight, dtype=np.float32)
            chosen = work.room.chosen if at.replicas else route
            assert chosen is not None
            load, sample = work.room.load[work.layer], work.room.sample[:, work.layer]
            if self._bias is None:
                choose(self._moe, logits, weights.bias, chosen, load, sample, weights.logit_bias)
            else:
                plain, unused = self._plain
                choose(self._moe, logits, weights.bias, plain, unused, added=weights.logit_bias)
                choose(self._moe, logits, self._bias[work.layer], chosen, load, sample, weights.logit_bias)
                count_moved(chosen, plain, T, load[-1:])
            if at.replicas:
                order(chosen, at.replicas.itself, T, self._moe.experts)
                if work.layer in self._exact:
                    return
                spread(chosen, at.replicas, T, route)
            order(route, at.rank, T, self._ranks)

    def spread(self, work: Work, shares: np.ndarray) -> None:
        """The rest of the gate's work, where replicas get such shares `[E, C]` of the rank's rows."""
        at, T, room = self.maps[work.layer], work.batch.rows, work.room
        assert at is not None and at.replicas is not None and room.chosen is not None
        with self.stage("gate", work, T):
            spread(room.chosen, at.replicas, T, room.route, room.shares.send(shares.ravel()))
            order(room.route, at.rank, T, self._ranks)

    def shared(self, weights: Shared, normed: cupy.ndarray) -> cupy.ndarray:
        """The shared expert's answer to tokens `[T, H]`."""
        y = self.feed_forward(weights.swiglu, normed)
        if weights.gate is not None:
            weigh(y, self.gemm(normed, weights.gate))
        return y

    def next_tokens(self, work: Work, part: slice, rules: Generate,
                    keep_logits: bool) -> tuple[cupy.ndarray, cupy.ndarray, cupy.ndarray]:
        """Of a part of the wanted rows: tokens, log-probabilities, and logits where they are kept."""
        batch, room = work.batch, work.room
        wanted = batch.wanted[part]
        normed = norm.rms_norm(work.x, self.weights.norm, self.model.norm_eps, room.wanted.send(wanted),
                               self.model.norm_weight_first)
        logits = self.gemm(normed, self.weights.head)
        u = np.zeros(len(wanted))
        if rules.temperature:
            u[:] = [uniform(rules.seed, int(p), int(at) + 1)
                    for p, at in zip(batch.prompt[part], batch.position[wanted])]
        token, logprob = choice.next_token(logits, room.target.send(batch.target[part]), room.u.send(u),
                                           rules.temperature, rules.top_p)
        kept = logits if keep_logits else cupy.empty((len(logits), 0), logits.dtype)  # a view would keep all
        return token, logprob, kept
