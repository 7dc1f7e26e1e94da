"""The segments of a step on a GPU: `layer.Segments` in CUDA, with rows that travel by MPI from device to device.

Arithmetic is given to one stream; packing and a rank's own rows to another, so that they need not wait behind another
micro-batch's layer. The host waits for events, never for the device.
"""

from collections.abc import Sequence

import cupy
import numpy as np

from hpcmoe.config import Generate
from hpcmoe.device import gate, rows
from hpcmoe.device.cuda import Event, to_host
from hpcmoe.device.grouped import Grouped
from hpcmoe.device.scratch import LOGITS
from hpcmoe.engine import relaying
from hpcmoe.engine.attends import Cache
from hpcmoe.engine.blocks import Blocks
from hpcmoe.engine.clock import Clock
from hpcmoe.engine.lanes import Lanes, sent_by
from hpcmoe.engine.layer import Team
from hpcmoe.engine.room import Counts, Room, Work
from hpcmoe.engine.timer import Timer
from hpcmoe.engine.trace import Untraced
from hpcmoe.engine.trip import Trip, classes
from hpcmoe.exchange.interface import Flight, Rows
from hpcmoe.exchange.replicas import exact, near
from hpcmoe.exchange.route import plan_receive, trailer_width
from hpcmoe.exchange.watch import Unwatched, Watch
from hpcmoe.model.weights import Swiglu, Weights
from hpcmoe.slots import Placement, Placements, most
from hpcmoe.spec import ModelSpec
from hpcmoe.types import Batch, Layout, Outcome, dense, sampled


class GpuSegments:
    """A rank's model, cache and exchanges. A `layer.Segments`; all of it runs on the main thread."""

    def __init__(self, model: ModelSpec, weights: Weights, cache: Cache, placements: Placements, rank: int,
                 lanes: Lanes, rooms: Sequence[Room], watch: Watch | Unwatched, rules: Generate,
                 keep_logits: bool = False, nodes: Sequence[int] = (), trace: Untraced | None = None,
                 here: ModelSpec | None = None) -> None:
        """`lanes`, and one room for each, of the micro-batches of a step; `here` is the model with the heads that the
        rank has, where it has not all; else as `segments.CpuSegments`."""
        self.model, self.weights, self.cache, self.rank = model, weights, cache, rank
        self.placements = list(placements)
        self._lanes, self.rooms, self.watch, self.rules, self.keep_logits = lanes, rooms, watch, rules, keep_logits
        self.compute = cupy.cuda.Stream(non_blocking=True)
        self._timer = Timer(self.compute)
        self.clock = Clock(model.layers, self._timer.busy, trace)
        self._timer.tell = self.clock.add
        self.travel = cupy.cuda.Stream(non_blocking=True, priority=-1)
        nodes = nodes or (0,) * placements[0].ranks
        seen = [near(placement, nodes, rank) for placement in placements]
        self._nodes, self._near, self.exact = nodes, seen, lanes.tallied(placements)
        self.blocks = Blocks(model, weights, cache, placements, seen, self.exact, self.compute, self._timer,
                             here or model)
        self._grouped, self._packing = Grouped(self.blocks.gemm, self.compute), Timer(self.travel)
        self._packing.tell = self.clock.add
        self.classes = classes(nodes, rank)
        self._width = trailer_width(most(placements), model.moe.top_k) if model.moe else 0
        self._answers = np.dtype(np.uint16 if placements[0].shards == 1 else np.float32)
        self._units_home = model.hidden * self._answers.itemsize // 2
        self._limit = model.moe.limit if model.moe else 0.0
        self.moe_layers: Sequence[int] = self.blocks.exchanged
        self.team: Team | None = None

    def begin(self, batch: Batch, number: int) -> Work:
        """See `layer.Segments`."""
        return Work(batch, number, self._lanes[number], self.rooms[number], np.zeros(self.model.layers, np.int64))

    def go(self, rows: int) -> None:
        """See `layer.Segments`."""
        self._lanes.go(rows)

    def enter(self, work: Work) -> Event:
        """See `layer.Segments`."""
        with self.compute:
            if self.team:
                self.team.look(work)
            self.blocks.enter(work)
            self.go_on(work)
        return Event(self.compute)

    def tally(self, work: Work) -> Flight:
        """See `layer.Segments`."""
        tallies, chosen = work.lane.tallies, work.room.chosen
        assert tallies and chosen
        self.watch.mark("balance", work.layer, work.number)
        tallies.start(chosen.home_counts)
        return tallies

    def spread(self, work: Work) -> Event:
        """See `layer.Segments`."""
        tallies, placement, to = work.lane.tallies, self.placements[work.layer], self._near[work.layer]
        assert tallies
        shares = exact(tallies.all, placement, self._nodes, self.rank, to)
        with self.compute:
            self.blocks.spread(work, shares)
            self._pack_ahead(work, spread=True)
        return Event(self.compute)

    def count(self, work: Work) -> Flight:
        """See `layer.Segments`."""
        lane, behind = work.lane, None
        if lane.by:
            work.send = relaying.plan(work, self.placements[work.layer], self.rank)
            counts, home_counts, behind = work.send.counts, work.send.home_counts, work.send.behind
        else:
            counts, home_counts = work.room.route.counts.copy(), work.room.route.home_counts.copy()
        work.homecoming = dense(home_counts, self.rank)
        with self.travel:
            units = self.model.hidden + (lane.by.width if lane.by else self._width)
            out, layout = lane.dispatch.room(counts, units)
            if not work.packed:
                with self._packing.stage("pack", work.layer, work.number, layout.rows):
                    self._pack_at(work, out, layout)
            packed = Event(self.travel)
        self._leave(work, layout.rows, counts, units)
        self.watch.mark("dispatch", work.layer, work.number, work.leaving)
        self.watch.by("counts")
        work.trip = self.depart(lane.dispatch, "dispatch", work)
        with self.clock.starting(work.trip):
            lane.headers.start(counts, home_counts, behind)
        return Counts(lane.headers, packed)

    def dispatch(self, work: Work) -> Flight:
        """See `layer.Segments`."""
        headers, travelling = work.lane.headers, work.lane.dispatch
        with self.clock.starting(work.trip), self.travel:
            travelling.start(headers.incoming, headers.extent)
            work.own = Event(self.travel)
            self.watch.by(travelling.mode)
        weights = self.weights.layers[work.layer].shared
        if weights:
            with self.compute, self.blocks.stage("expert", work, work.batch.rows):
                work.shared = self.blocks.shared(weights, work.room.normed[:work.batch.rows])
        return work.trip

    def expert(self, work: Work) -> Event:
        """See `layer.Segments`."""
        slots = self.weights.layers[work.layer].experts
        with self.blocks.stage("expert", work, work.lane.dispatch.landing.rows):
            if len(slots) > 1:
                self._sorted_experts(work, slots)
            else:
                self._one_expert(work, slots)
        return Event(self.compute)

    def collect(self, work: Work) -> Flight:
        """See `layer.Segments`."""
        home = work.lane.home
        self.watch.mark("return", work.layer, work.number, work.leaving)
        trip = self.depart(home, "return", work)
        with self.clock.starting(trip), self.travel:
            home.start(work.homecoming, work.lane.headers.extent_home)
            work.own = Event(self.travel)
            self.watch.by(home.mode)
        return trip

    def leave_enter(self, work: Work) -> Event:
        """See `layer.Segments`."""
        assert self.model.moe is not None
        home = work.lane.home
        with self.compute:
            work.own.hold(self.compute)
            by, route, base = work.lane.by, work.room.route, work.room.home_base.send(home.landing.first)
            if by:
                route, base = relaying.homeward(work, home.landing), work.room.zero
            with self.blocks.stage("combine", work, work.batch.rows):
                rows.combine(work.x, home.arrived, work.shared, route, base,
                             self.model.moe.round_weights and not (by and by.presum))
            work.shared = None
            work.layer += 1
            self.blocks.go_on(work)
            self.go_on(work)
        return Event(self.compute)

    def go_on(self, work: Work) -> None:
        """What the blocks have come to is made ready to leave: for a team's attention, or behind a gate."""
        if self.team and work.attends:
            self.team.ready(work)
        else:
            self._pack_ahead(work)

    def head(self, work: Work) -> Event:
        """See `layer.Segments`."""
        step = max(1, LOGITS // self.model.vocabulary)
        with self.compute, self.blocks.stage("head", work, len(work.batch.wanted)):
            parts = [self.blocks.next_tokens(work, slice(first, first + step), self.rules, self.keep_logits)
                     for first in range(0, max(len(work.batch.wanted), 1), step)]
            work.results = tuple(to_host(cupy.concatenate(part)) for part in zip(*parts))
            work.results += to_host(work.room.load), to_host(work.room.sample)
        return Event(self.compute)

    def outcome(self, work: Work) -> Outcome:
        """See `layer.Segments`."""
        self._timer.busy()
        self._packing.busy()
        token, logprob, logits, load, sample = work.results
        wide = (logits.astype(np.uint32) << 16).view(np.float32) if self.keep_logits else None
        rows = load[:, :self.model.experts].astype(np.int64)
        return Outcome(token.copy(), logprob.copy(), rows, rows.sum(axis=1) if self.blocks.at_home else work.computed,
                       load[:, -1].astype(np.int64), sample[:len(sampled(work.batch.rows))].copy(), wide)

    def change(self, layer: int, placement: Placement, held: Weights) -> None:
        """See `device.RankSegments`."""
        self.placements[layer], self.weights = placement, held
        self._near[layer] = near(placement, self._nodes, self.rank)
        self.blocks.change(layer, placement, self._near[layer], held)

    def steer(self, bias: np.ndarray) -> None:
        """See `device.RankSegments`."""
        with self.compute:
            self.blocks.steer(bias, len(self.rooms[0].normed))

    def close(self) -> None:
        """Nothing more is begun, and what was is done. Local."""
        self.travel.synchronize()
        self.compute.synchronize()

    def free(self) -> None:
        """Collective."""
        self._lanes.free()
        if self.team:
            self.team.free()

    def depart(self, travelling: Rows, kind: str, work: Work) -> Trip:
        return self.clock.depart(travelling, kind, work.layer, work.number, work.leaving,
                                 sent_by(travelling, work.sent))

    def _pack_ahead(self, work: Work, spread: bool = False) -> None:
        """Packs right behind the gate, where it is known where to, or tells the host what it needs: on the other stream
        packing would wait for the other micro-batch's products to leave it a multiprocessor."""
        T, route = work.batch.rows, work.room.route
        work.packed = False
        if work.layer == self.model.layers or (work.layer in self.exact and not spread):
            return
        if work.lane.by:
            return relaying.tell(work)
        most = T * min(route.row.shape[1], self.placements[0].ranks)
        out = work.lane.dispatch.ahead(most, self.model.hidden + self._width)
        if out is not None and T and gate.lay(route, work.room.laid):
            with self.blocks.stage("pack", work, T):
                self._pack(work, work.room.laid, out)
            work.packed = True

    def _pack_at(self, work: Work, out: cupy.ndarray, layout: Layout) -> None:
        if work.lane.by:
            relaying.pack(work.room.normed[:work.batch.rows], work.send, out, layout)
        else:
            self._pack(work, work.room.out_base.send(layout.first), out)

    def _pack(self, work: Work, base: cupy.ndarray, out: cupy.ndarray) -> None:
        at = self.blocks.maps[work.layer]
        assert at is not None
        rows.pack(work.room.normed[:work.batch.rows], work.room.route, at, base, out, self._width)

    def _leave(self, work: Work, count: int, counts: np.ndarray, units: int) -> None:
        work.leaving, work.sent = count, self.classes @ counts * (2 * units)

    def _one_expert(self, work: Work, slots: Sequence[Swiglu]) -> None:
        """Rows are computed in the order in which they came; no slot, no rows."""
        arrived, landing, H = work.lane.dispatch.arrived, work.lane.dispatch.landing, self.model.hidden
        out, layout = work.lane.home.room(landing.counts, self._units_home)
        work.computed[work.layer] = landing.rows
        self._leave(work, layout.rows, landing.counts, self._units_home)
        with self.compute:
            work.own.hold(self.compute)
            if not landing.rows:
                return
            x = arrived[:landing.rows]
            if landing.place is not None or arrived.shape[1] != H:
                index = None if landing.place is None else work.room.source.send(landing.place)
                x = rows.take(arrived, index, landing.rows, H)
            expert, = slots
            if layout.place is None:
                self.blocks.feed_forward(expert, x, out[:layout.rows].view(self._answers), self._limit)
            else:
                answers = self.blocks.feed_forward(expert, x, limit=self._limit, dtype=self._answers)
                rows.put(answers.view(np.uint16), work.room.target_row.send(layout.place), out)

    def _sorted_experts(self, work: Work, slots: Sequence[Swiglu]) -> None:
        """Rows are computed by slot; the trailers, which say by which, pass through the host."""
        arrived, landing, H = work.lane.dispatch.arrived, work.lane.dispatch.landing, self.model.hidden
        with self.travel:
            found = cupy.ascontiguousarray(arrived[:, H:]).get().view(np.int16)
        lie = np.arange(landing.rows) if landing.place is None else landing.place
        plan = plan_receive(landing.counts, found[lie], len(slots))
        out, layout = work.lane.home.room(plan.home_counts, self._units_home)
        work.computed[work.layer] = len(plan.row)
        self._leave(work, layout.rows, plan.home_counts, self._units_home)
        to = plan.place if layout.place is None else layout.place[plan.place]
        with self.compute:
            work.own.hold(self.compute)
            x = rows.take(arrived, work.room.source.send(lie[plan.row]), len(plan.row), H)
            answers = self._grouped(x, plan.slot_counts.tolist(), [(slot.gate_up, slot.gate_up_bias) for slot in slots],
                                    [(slot.down, slot.down_bias) for slot in slots], self._limit, self._answers)
            rows.put(answers.view(np.uint16), work.room.target_row.send(to), out)
