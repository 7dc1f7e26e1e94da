"""The segments of a step on a CPU: `layer.Segments` in NumPy, with rows that travel by MPI."""

from collections.abc import Sequence
from contextlib import AbstractContextManager

import numpy as np

from hpcmoe import array
from hpcmoe.engine.clock import Clock
from hpcmoe.engine.lanes import Lanes, sent_by
from hpcmoe.engine.layer import Team
from hpcmoe.engine.stream import Event, Stream
from hpcmoe.engine.trace import Untraced
from hpcmoe.engine.trip import Trip, classes
from hpcmoe.engine.work import Work
from hpcmoe.exchange.interface import Flight, Rows
from hpcmoe.exchange.replicas import even, exact, near, spread
from hpcmoe.exchange.route import plan_receive, plan_send, trailer_width
from hpcmoe.exchange.route_far import plan_send_far
from hpcmoe.exchange.watch import Unwatched, Watch
from hpcmoe.kernels import combine, pack, rope
from hpcmoe.model.attention import attention
from hpcmoe.model.cache import Cache
from hpcmoe.model.embedding import embed
from hpcmoe.model.expert import experts, feed_forward, shared
from hpcmoe.model.gate import gate, steered
from hpcmoe.model.head import Choose, next_tokens
from hpcmoe.model.norm import norm
from hpcmoe.model.weights import Shared, Weights
from hpcmoe.slots import Placement, Placements, most
from hpcmoe.spec import ModelSpec
from hpcmoe.types import Batch, Layout, Outcome, SendPlan, dense, sampled


class CpuSegments:
    """A rank's model, cache and exchanges. A `layer.Segments`.

    Methods without an underscore run on the main thread, which alone calls MPI; the others on the stream.
    """

    def __init__(self, model: ModelSpec, weights: Weights, cache: Cache, placements: Placements, rank: int,
                 lanes: Lanes, stream: Stream, watch: Watch | Unwatched, choose: Choose, dtype: np.dtype,
                 keep_logits: bool = False, nodes: Sequence[int] = (), trace: Untraced | None = None) -> None:
        """`lanes` of the micro-batches of a step; `keep_logits` puts them into each outcome.

        `nodes` `[R]` as in `launch.World`; without them all ranks are on one.
        """
        self.model, self.weights, self.cache, self.rank = model, weights, cache, rank
        self.placements = list(placements)
        self._lanes, self.stream, self.choose, self.dtype, self.keep_logits = lanes, stream, choose, dtype, keep_logits
        self.watch, self.clock = watch, Clock(model.layers, stream.busy, trace)
        nodes = nodes or (0,) * placements[0].ranks
        self.classes, self._near = classes(nodes, rank), [near(placement, nodes, rank) for placement in placements]
        self._nodes, self.exact = nodes, lanes.tallied(placements)
        self._width = trailer_width(most(placements), model.moe.top_k) if model.moe else 0
        self.moe_layers: Sequence[int] = model.moe_layers
        self.team: Team | None = None
        self._answers = array.answers(dtype, placements[0].shards)
        self._units, self._units_home = (model.hidden * kind.itemsize // 2 for kind in (dtype, self._answers))
        self._limit = model.moe.limit if model.moe else 0.0
        self._bias: np.ndarray | None = None

    def begin(self, batch: Batch, number: int) -> Work:
        """See `layer.Segments`."""
        L, E = self.model.layers, self.model.experts
        return Work(batch, number, self._lanes[number], np.zeros((L, E), np.int64), np.zeros(L, np.int64),
                    np.zeros(L, np.int64), sampled(batch.rows))

    def go(self, rows: int) -> None:
        """See `layer.Segments`."""
        self._lanes.go(rows)

    def enter(self, work: Work) -> Event:
        """See `layer.Segments`."""
        return self.stream.run(self._enter, work)

    def tally(self, work: Work) -> Flight:
        """See `layer.Segments`."""
        tallies = work.lane.tallies
        assert tallies
        self.watch.mark("balance", work.layer, work.number)
        tallies.start(work.load[work.layer])
        return tallies

    def spread(self, work: Work) -> Event:
        """See `layer.Segments`."""
        return self.stream.run(self._pack, work)

    def count(self, work: Work) -> Flight:
        """See `layer.Segments`."""
        self.watch.mark("dispatch", work.layer, work.number, work.leaving)
        self.watch.by("counts")
        work.trip = self.depart(work.lane.dispatch, "dispatch", work)
        with self.clock.starting(work.trip):
            work.lane.headers.start(work.send.counts, work.send.home_counts, work.send.behind)
        return work.lane.headers

    def dispatch(self, work: Work) -> Flight:
        """See `layer.Segments`."""
        headers, rows = work.lane.headers, work.lane.dispatch
        with self.clock.starting(work.trip):
            rows.start(headers.incoming, headers.extent)
            self.watch.by(rows.mode)
        weights = self.weights.layers[work.layer].shared
        if weights:
            work.shared_ready = self.stream.run(self._shared, work, weights)
        return work.trip

    def expert(self, work: Work) -> Event:
        """See `layer.Segments`."""
        return self.stream.run(self._expert, work, work.lane.dispatch.arrived, work.lane.dispatch.landing)

    def collect(self, work: Work) -> Flight:
        """See `layer.Segments`."""
        rows = work.lane.home
        self.watch.mark("return", work.layer, work.number, work.leaving)
        trip = self.depart(rows, "return", work)
        with self.clock.starting(trip):
            rows.start(work.homecoming, work.lane.headers.extent_home)
            self.watch.by(rows.mode)
        return trip

    def leave_enter(self, work: Work) -> Event:
        """See `layer.Segments`."""
        work.shared_ready.wait()  # past already, for streams keep their order; raises what it raised
        return self.stream.run(self._leave_enter, work, work.lane.home.arrived, work.lane.home.landing)

    def head(self, work: Work) -> Event:
        """See `layer.Segments`."""
        return self.stream.run(self._head, work)

    def outcome(self, work: Work) -> Outcome:
        """See `layer.Segments`."""
        return work.outcome

    def change(self, layer: int, placement: Placement, held: Weights) -> None:
        """See `device.RankSegments`."""
        self.placements[layer], self.weights = placement, held
        self._near[layer] = near(placement, self._nodes, self.rank)

    def steer(self, bias: np.ndarray) -> None:
        """See `device.RankSegments`."""
        self._bias = bias

    def close(self) -> None:
        """Nothing more is begun, and what was is done. Local."""
        self.stream.close()

    def free(self) -> None:
        """Collective."""
        self.close()
        self._lanes.free()
        if self.team:
            self.team.free()

    def depart(self, rows: Rows, kind: str, work: Work) -> Trip:
        return self.clock.depart(rows, kind, work.layer, work.number, work.leaving, sent_by(rows, work.sent))

    def stage(self, name: str, work: Work, rows: int) -> AbstractContextManager[None]:
        return self.clock.stage(name, work.layer, work.number, rows)

    def _bytes(self, counts: np.ndarray, units: int) -> np.ndarray:
        """`[len(CLASSES)]` int64: of `counts` `[R]` rows of `units` uint16."""
        return self.classes @ counts * (2 * units)

    def _enter(self, work: Work) -> None:
        with self.stage("attention", work, work.batch.rows):
            if self.team:
                self.team.look(work)
            else:
                work.angles = rope.tables(work.batch.position, self.model.attention, self.dtype)
            work.x = embed(self.weights.embedding, work.batch.token, self.dtype)
        self._to_next_gate(work)

    def _to_next_gate(self, work: Work) -> None:
        """Whole dense layers, then the first half of the next layer with experts, if there is one; where a team
        attends, up to the next attention."""
        while work.layer < self.model.layers:
            if self.team:
                return self.team.ready(work)
            weights = self.weights.layers[work.layer].attention
            with self.stage("attention", work, work.batch.rows):
                work.x = attention(self.model, weights, work.layer, work.x, work.batch, self.cache, work.angles)
            if not self._feed_forward(work):
                return self._gate(work)

    def go_on(self, work: Work) -> None:
        """From behind a team's attention to the next gate or attention; on the stream."""
        if self._feed_forward(work):
            self._to_next_gate(work)
        else:
            self._gate(work)

    def _feed_forward(self, work: Work) -> bool:
        """Behind attention: the rest of a dense layer, or the norm before a gate; whether it was dense."""
        weights = self.weights.layers[work.layer]
        with self.stage("attention", work, work.batch.rows):
            work.normed = norm(self.model, work.x, weights.norm)
            if weights.dense:
                work.x = work.x + feed_forward(weights.dense, work.normed)
                work.layer += 1
        return weights.dense is not None

    def _gate(self, work: Work) -> None:
        moe, weights = self.model.moe, self.weights.layers[work.layer]
        assert moe is not None and weights.gate is not None
        with self.stage("gate", work, work.batch.rows):
            if self._bias is None:
                work.route = gate(moe, weights.gate, work.normed)
            else:
                work.route, work.moved[work.layer] = steered(moe, weights.gate, self._bias[work.layer], work.normed)
            work.load[work.layer] = np.bincount(work.route.expert.ravel(), minlength=moe.experts)
            work.sample.append(work.route.expert[work.tokens].astype(np.int16))
        if work.layer not in self.exact:
            self._pack(work)

    def _pack(self, work: Work) -> None:
        with self.stage("pack", work, work.batch.rows):
            placement = self.placements[work.layer]
            slot = self._spread(work, placement) if placement.replicated else placement.slot[work.route.expert]
            work.send = self._plan(work, slot, placement)
            units = self._units + work.send.trailer.shape[1]
            rows, layout = work.lane.dispatch.room(work.send.counts, units)
            pack.pack(work.normed, work.send.token, work.send.trailer, rows, layout.place)
            work.leaving, work.sent = layout.rows, self._bytes(work.send.counts, units)
            work.homecoming = dense(work.send.home_counts, self.rank)

    def _spread(self, work: Work, placement: Placement) -> np.ndarray:
        """`[T, K]`: slots among the replicas of the experts that were chosen."""
        to, tallies = self._near[work.layer], work.lane.tallies
        shares = (exact(tallies.all, placement, self._nodes, self.rank, to) if tallies
                  else even(work.load[work.layer], placement))
        return spread(work.route.expert, to, shares)

    def _plan(self, work: Work, slot: np.ndarray, placement: Placement) -> SendPlan:
        by = work.lane.by
        if not by:
            return plan_send(slot, placement, self._width)
        return plan_send_far(slot, work.route.weight if by.presum else None, placement, by.grid, self.rank)

    def _shared(self, work: Work, weights: Shared) -> None:
        with self.stage("expert", work, work.batch.rows):
            work.shared = shared(weights, work.normed)

    def _expert(self, work: Work, arrived: np.ndarray, landing: Layout) -> None:
        slots = self.weights.layers[work.layer].experts
        with self.stage("pack", work, landing.rows):
            message = pack.gather(arrived, landing.place)
            width = message.shape[1] - self._units
            trailer = pack.trailer(message, self.model.hidden, self.dtype, width)
            receive = plan_receive(landing.counts, trailer, len(slots))
            work.computed[work.layer] = len(receive.row)
            rows = pack.unpack(message, self.model.hidden, self.dtype)
            answers, layout = work.lane.home.room(receive.home_counts, self._units_home)
            work.leaving, work.sent = layout.rows, self._bytes(receive.home_counts, self._units_home)
        with self.stage("expert", work, layout.rows):
            experts(slots, rows, receive, answers.view(self._answers), layout.place, self._limit)

    def _leave_enter(self, work: Work, arrived: np.ndarray, landing: Layout) -> None:
        assert self.model.moe is not None
        with self.stage("combine", work, work.batch.rows):
            answers = pack.unpack(arrived, self.model.hidden, self._answers)
            home, by = landing.at(work.send.home), work.lane.by
            if by and by.presum:  # by weight already
                y = combine.combine(answers, home, np.ones(home.shape, np.float32))
            else:
                y = combine.combine(answers, home, work.route.weight, self.model.moe.round_weights, self.dtype)
            work.x = work.x + (y if work.shared is None else y + work.shared)
            work.shared = None
        work.layer += 1
        self._to_next_gate(work)

    def _head(self, work: Work) -> None:
        with self.clock.stage("head", -1, work.number, len(work.batch.wanted)):
            token, logprob, logits = next_tokens(self.model, self.weights, work.x, work.batch, self.choose,
                                                 self.keep_logits)
        work.outcome = Outcome(token, logprob, work.load, work.computed, work.moved, self._sample(work), logits)

    def _sample(self, work: Work) -> np.ndarray:
        """As in `Outcome`."""
        K = work.sample[0].shape[1] if work.sample else 0
        sample = np.full((len(work.tokens), self.model.layers, K), -1, np.int16)
        for layer, chosen in zip(self.moe_layers, work.sample):
            sample[:, layer] = chosen
        return sample
