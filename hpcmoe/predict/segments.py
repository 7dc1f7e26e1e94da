"""The segments of a step that cost simulated time only: `layer.Segments`, cut where `engine.segments` cuts."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from hpcmoe.engine.layer import Team
from hpcmoe.engine.trip import Trip
from hpcmoe.predict import cost, tally
from hpcmoe.predict.cost import Work as Cost
from hpcmoe.predict.machine import Hardware
from hpcmoe.predict.meetings import Meetings
from hpcmoe.predict.rank import Computed, Crossing, Rank
from hpcmoe.predict.rows import Journey, LayerRows
from hpcmoe.types import Batch, Outcome, Span

NONE = np.empty(0, np.int64)
NOTHING = Outcome(NONE, NONE, NONE, NONE, NONE, NONE)


@dataclass
class Work:
    """The handle of a micro-batch."""

    batch: Batch
    number: int
    layer: int = 0
    begun: int = 0
    """layers with experts that it has begun"""
    waits: bool = False
    """whether its tokens are ready to leave for the team's attention"""
    rows: LayerRows = field(init=False)
    trip: Trip = field(init=False)
    leaving: Crossing = field(init=False)


class Simulated:
    """A class of ranks. A `layer.Segments`."""

    def __init__(self, rank: Rank, meetings: Meetings) -> None:
        drawn = meetings.drawn
        self.model, self.hw, self.layout = drawn.model, drawn.hw, drawn.layout
        self.rank, self.meetings = rank, meetings
        self.at_home = self.hw.on_gpu and self.layout.group == 1 and self.model.experts == 1
        """whether rows never leave: the rank has the only expert"""
        self.moe_layers: Sequence[int] = () if self.at_home else self.model.moe_layers
        self.exact = frozenset(layer for layer in self.moe_layers if self.layout.job.balance.exact
                               and drawn.placements[layer].replicated)
        self._gathered = tally.gathered(self.hw, drawn.at, self.model.experts)
        self.team: Team | None = SimulatedTeam(self) if self.layout.team > 1 else None

    def go(self, rows: int) -> None:
        """See `layer.Segments`: nothing here depends on it."""

    def begin(self, batch: Batch, number: int) -> Work:
        """See `layer.Segments`."""
        return Work(batch, number)

    def enter(self, work: Work) -> Computed:
        """See `layer.Segments`."""
        self.rank.now += self.hw.launch.begin
        return self.start(work, self._to_next_gate(work))

    def tally(self, work: Work) -> Crossing:
        """See `layer.Segments`."""
        self.host()
        return self.meetings.tell(self.rank, "tally", work, self._gathered)

    def spread(self, work: Work) -> Computed:
        """See `layer.Segments`. The shares are for the main thread, where there is a GPU; else for the stream."""
        self.host()
        placement, hw = self.meetings.drawn.placements[work.layer], self.hw
        seconds = tally.shared(placement, self.meetings.drawn.at)
        if hw.on_gpu:
            self.rank.now += seconds
        else:
            hw = replace(hw, overhead=replace(hw.overhead, pack=hw.overhead.pack + seconds))
        return self._run(work, [self._pack(work, hw)])

    def count(self, work: Work) -> Crossing:
        """See `layer.Segments`."""
        self.host()
        work.leaving = Crossing(self.rank)
        work.trip = self._depart(work, "dispatch", work.leaving, work.rows.there)
        return self.meetings.tell(self.rank, "counts", work)

    def dispatch(self, work: Work) -> Trip:
        """See `layer.Segments`."""
        self.host()
        self._post(work.trip)
        self.meetings.travel(self.rank, "dispatch", work, work.rows.there, work.leaving)
        assert self.model.moe
        if self.model.moe.shared_hidden:
            self.start(work, [cost.shared(self.model, self.hw, work.batch.rows)])
        return work.trip

    def expert(self, work: Work) -> Computed:
        """See `layer.Segments`."""
        rows, me = work.rows, self.rank.number
        self.host()
        if self.meetings.most_slots > 1 or len(rows.there.hops) > 1:
            ordered = cost.pack(self.hw, float(rows.received[me]), self.model.hidden)
            self._run(work, [replace(ordered, stage="expert", launch=self.hw.launch.order) if self.hw.on_gpu
                             else ordered])
        answers = Cost("expert", *rows.experts[:, me].tolist())
        launch = float(cost.launches(self.hw, rows.experts[5, me], rows.computed[me]))
        return self.rank.compute(replace(answers, launch=launch), layer=work.layer, micro_batch=work.number,
                                 rows=round(rows.computed[me]))

    def collect(self, work: Work) -> Trip:
        """See `layer.Segments`."""
        self.host()
        crossing = Crossing(self.rank)
        trip = self._depart(work, "return", crossing, work.rows.home)
        self._post(trip)
        self.meetings.travel(self.rank, "return", work, work.rows.home, crossing)
        return trip

    def leave_enter(self, work: Work) -> Computed:
        """See `layer.Segments`."""
        summed = cost.combine(self.model, self.hw, work.batch.rows, self.layout.shards)
        self._run(work, [summed])
        work.layer += 1
        return self.start(work, self._to_next_gate(work))

    def head(self, work: Work) -> Computed:
        """See `layer.Segments`."""
        return self.start(work, [cost.head(self.model, self.hw, len(work.batch.wanted))])

    def outcome(self, work: Work) -> Outcome:
        """See `layer.Segments`: no token is chosen here."""
        return NOTHING

    def go_on(self, work: Work) -> list[Cost]:
        """What follows an attention, up to the next gate or attention."""
        if self.model.is_dense(work.layer):
            work.layer += 1
            block = cost.dense(self.model, self.hw, work.batch.rows)
            return [*self.graph(work.batch.spans, block), *self._to_next_gate(work)]
        work.rows = self.meetings.rows(work.number, work.layer, work.begun, work.batch.rows)
        work.begun += 1
        gate = self.graph(work.batch.spans, cost.gate(self.model, self.hw, work.batch.rows))
        if self.at_home:
            answers = [Cost("expert", *work.rows.experts[:, self.rank.number].tolist()),
                       cost.combine(self.model, self.hw, work.batch.rows, self.layout.shards)]
            work.layer += 1
            return [*gate, *self.graph(work.batch.spans, *answers), *self._to_next_gate(work)]
        return [*gate] if work.layer in self.exact else [*gate, self._pack(work, self.hw)]

    def graph(self, spans: Sequence[Span], *costs: Cost) -> Sequence[Cost]:
        """What the main thread gives to a GPU at once, where it recurs."""
        return [replace(one, launch=0.0) for one in costs] if cost.recurs(self.hw, spans) else costs

    def _pack(self, work: Work, hw: Hardware) -> Cost:
        return cost.pack(hw, float(work.rows.there.rows[self.rank.number]), self.model.hidden)

    def _to_next_gate(self, work: Work) -> list[Cost]:
        if work.layer == self.model.layers:
            return []
        if self.team:
            work.waits = True
            return []
        spans = work.batch.spans
        return [*self.graph(spans, self.meetings.attention(work.layer, spans)), *self.go_on(work)]

    def start(self, work: Work, costs: list[Cost]) -> Computed:
        """Work goes to the stream."""
        self.host()
        return self._run(work, costs)

    def _run(self, work: Work, costs: list[Cost]) -> Computed:
        return self.rank.compute(*costs, layer=work.layer, micro_batch=work.number, rows=work.batch.rows)

    def host(self) -> None:
        """The main thread begins something."""
        self.rank.now += self.hw.overhead.host

    def _post(self, trip: Trip) -> None:
        """The main thread hands an exchange's rows to MPI."""
        with self.rank.clock.starting(trip):
            self.rank.now += self.hw.overhead.exchange

    def _depart(self, work: Work, kind: str, crossing: Crossing, journey: Journey) -> Trip:
        me = self.rank.number
        return self.rank.clock.depart(crossing, kind, work.layer, work.number, round(float(journey.rows[me])),
                                      lambda: journey.sent[me])


class SimulatedTeam:
    """Its team. A `layer.Team`."""

    def __init__(self, segments: Simulated) -> None:
        self._of = segments
        self._size = segments.layout.team

    def meet(self, work: Work) -> Crossing:
        """See `layer.Team`."""
        return self._of.meetings.meet(self._of.rank, work)

    def attends(self, work: Work) -> bool:
        """See `layer.Team`."""
        return work.waits

    def gather(self, work: Work) -> Trip:
        """See `layer.Team`."""
        return self._leave(work, "gather")

    def attend(self, work: Work) -> Computed:
        """See `layer.Team`."""
        of, spans = self._of, self._of.meetings.team_spans(work.batch.spans)
        return of.start(work, list(of.graph(spans, of.meetings.attention(work.layer, spans))))

    def bring(self, work: Work) -> Trip:
        """See `layer.Team`."""
        return self._leave(work, "bring")

    def join(self, work: Work) -> Computed:
        """See `layer.Team`."""
        of = self._of
        work.waits = False
        joined = cost.team_join(of.model, of.hw, self._size, work.batch.rows)
        return of.start(work, [*of.graph(work.batch.spans, joined), *of.go_on(work)])

    def look(self, work: Work) -> None:
        """See `layer.Team`; part of `enter`."""

    def ready(self, work: Work) -> None:
        """See `layer.Team`; part of what comes before."""

    def free(self) -> None:
        """See `layer.Team`."""

    def _leave(self, work: Work, kind: str) -> Trip:
        of = self._of
        of.host()
        crossing = Crossing(of.rank)
        near, parts = of.meetings.team_near, cost.team_bytes(of.model, of.hw.device, self._size, work.batch.rows)
        sent = np.zeros(3, np.int64)
        sent[1 if near else 2] = round(parts[kind == "bring"])
        trip = of.rank.clock.depart(crossing, kind, work.layer, work.number, (self._size - 1) * work.batch.rows,
                                    lambda: sent)
        of.meetings.team_travel(of.rank, kind, work, parts[kind == "bring"], crossing)
        return trip
