"""What a GPU computes between two exchanges: embedding, attention, dense blocks, gates; a graph, if it recurs. Then the
next tokens."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import cupy
import numpy as np

from hpcmoe.config import Generate
from hpcmoe.device import choice, norm, rows
from hpcmoe.device.gate import Map, choose, count_moved, make_map, make_route, order, spread
from hpcmoe.device.gemm import Gemm
from hpcmoe.device.graph import Graphs
from hpcmoe.device.scratch import RECURRING
from hpcmoe.device.swiglu import swiglu, weigh
from hpcmoe.engine.attends import Attends, Cache
from hpcmoe.engine.room import Work
from hpcmoe.engine.timer import Timer
from hpcmoe.exchange.replicas import Near
from hpcmoe.kernels.choice import uniform
from hpcmoe.model.weights import Shared, Swiglu, Weights
from hpcmoe.slots import Placement, Placements
from hpcmoe.spec import ModelSpec
from hpcmoe.types import Batch


class Blocks:
    """A rank's layers but for their exchanges, on one stream, which is current in all calls."""

    def __init__(self, model: ModelSpec, weights: Weights, cache: Cache, placements: Placements, near: Sequence[Near],
                 exact: frozenset[int], stream: cupy.cuda.Stream, timer: Timer, here: ModelSpec) -> None:
        """near `[L]`: of each layer's replicas; exact as in `layer.Segments`; `here` is the model with the heads that
        the rank has: a part of them where a team attends."""
        self._exact = exact
        self.model, self.weights, self._timer = model, weights, timer
        self._ranks = placements[0].ranks
        self.gemm, self._graphs = Gemm(), Graphs(stream)
        self.attends = Attends(here, cache, self.gemm, stream)
        self._split = here.attention.heads < model.attention.heads
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
        self._graphs.forget(lambda key: key[-1] == (layer if self._split else first))

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
        token, work.seen = room.token.send(batch.token), room.place.send(batch, self.attends.by_cudnn)
        work.x = room.x[:batch.rows]
        room.load[...] = 0

        def embed_and_on() -> None:
            with self.stage("attention", work, batch.rows):
                rows.take(self.weights.embedding, token, batch.rows, self.model.hidden, work.x)
            self._on(work)
        self._run("enter", work, embed_and_on, self._end(0))
        work.attends = self._split

    def go_on(self, work: Work) -> None:
        """All up to the next gate, or to the last layer's end, from the beginning of a layer."""
        self._run("on", work, lambda: self._on(work), self._end(work.layer))
        work.attends = self._split and work.layer < self.model.layers

    def behind(self, work: Work, added: cupy.ndarray) -> None:
        """The same from behind a team's attention, which adds `[T, H]` to the rank's tokens."""
        layer = work.layer
        dense = self.weights.layers[layer].dense is not None

        def join_and_on() -> None:
            with self.stage("attention", work, work.batch.rows):
                self._behind(work, added)
            if dense:
                work.layer = layer + 1
                self._on(work)
            else:
                self._gate(work, work.room.normed[:work.batch.rows])
        self._run("behind", work, join_and_on, layer + dense)
        work.attends = dense and work.layer < self.model.layers

    def alone(self, work: Work, batch: Batch, part: Callable[[], None]) -> None:
        """A team's part of the layer, for the tokens of `batch`; as a graph where it is likely to come again."""
        self._run("team", work, part, work.layer, batch)

    def _end(self, begin: int) -> int:
        """The layer in which what begins at the beginning of `begin` ends."""
        if self._split:
            return begin
        return next((layer for layer in self.exchanged if layer >= begin), self.model.layers)

    def _run(self, name: str, work: Work, part: Callable[[], None], end: int, batch: Batch | None = None) -> None:
        """The part, which ends in layer `end`; as a graph where it is likely to come again."""
        begin, batch = work.layer, batch or work.batch
        T = batch.rows
        if 0 < T <= RECURRING and all(span.rows == 1 for span in batch.spans):
            with self.stage("attention", work, T):
                self._graphs.run((name, work.number, T, begin), part)
        else:
            part()
        work.layer = end

    def stage(self, name: str, work: Work, count: int) -> AbstractContextManager[None]:
        """The time of what the block gives to the stream counts for stage `name`; within a graph, for the graph's."""
        return nullcontext() if self._timer.inside else self._timer.stage(name, work.layer, work.number, count)

    def _on(self, work: Work) -> None:
        T, normed = work.batch.rows, work.room.normed[:work.batch.rows]
        for layer in range(work.layer, self.model.layers):
            work.layer, weights = layer, self.weights.layers[layer]
            with self.stage("attention", work, T):
                if self._split:
                    self._normed(work, normed)
                    return
                self._behind(work, self._attention(work, self._normed(work)))
            if weights.dense:
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

    def _normed(self, work: Work, out: cupy.ndarray | None = None) -> cupy.ndarray:
        """What attention sees, `[T, H]`, in `out` if given."""
        weight = self.weights.layers[work.layer].attention.norm
        return norm.rms_norm(work.x, weight, self.model.norm_eps, None, self.model.norm_weight_first, out)

    def _behind(self, work: Work, added: cupy.ndarray) -> None:
        """What attention adds, and the norm of the sum; then the whole block of a dense layer."""
        weights, normed = self.weights.layers[work.layer], work.room.normed[:work.batch.rows]
        norm.add_norm(work.x, added, weights.norm, self.model.norm_eps, normed, self.model.norm_weight_first)
        if weights.dense:
            norm.add(work.x, self.feed_forward(weights.dense, normed))

    @property
    def _moe(self):
        assert self.model.moe is not None
        return self.model.moe

    def feed_forward(self, weights: Swiglu, x: cupy.ndarray, out: cupy.ndarray | None = None,
                     limit: float = 0, dtype: Any = np.uint16) -> cupy.ndarray:
        """x `[T, H]` -> `[T, H]` of `dtype`, to `out` if given; `limit` as in `spec.Moe`."""
        return swiglu(self.gemm, x, weights.gate_up, weights.down, out, weights.gate_up_bias, weights.down_bias, limit,
                      dtype)

    def _attention(self, work: Work, normed: cupy.ndarray) -> cupy.ndarray:
        """What the attention of the layer adds to its tokens, `[T, H]`."""
        weights = self.weights.layers[work.layer].attention
        return self.gemm(self.attends(weights, work.layer, work.seen, normed), weights.o, bias=weights.o_bias)

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
