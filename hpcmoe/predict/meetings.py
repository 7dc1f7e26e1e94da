"""Where simulated ranks meet: an exchange ends when all have begun it and its bytes have come."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hpcmoe.predict import cost, flow
from hpcmoe.predict.network import Network
from hpcmoe.predict.rank import Crossing, Rank
from hpcmoe.predict.rows import Drawn, Journey, LayerRows
from hpcmoe.slots import most
from hpcmoe.types import Batch, Span

HEADER = 40
"""Bytes of a header for a peer, and of what a rank says of itself."""


@dataclass
class Meeting:
    """Who has come, and when."""

    members: np.ndarray
    """`[m]` classes"""
    come: dict[int, tuple[float, Crossing]] = field(default_factory=dict)

    @property
    def ready(self) -> np.ndarray:
        """`[m]`: when each has come."""
        return np.array([self.come[member][0] for member in self.members.tolist()])


class Meetings:
    """Those of one group of ranks; `resolved` is told of each rank that has come to know the end of
    something, and of that end."""

    def __init__(self, drawn: Drawn, resolved: Callable[[int, float], None]) -> None:
        self.drawn, self._resolved = drawn, resolved
        self.step = 0
        classes, at, team = drawn.classes, drawn.at, drawn.layout.team
        C = len(classes)
        same = at.node[:, None] == at.node[None] if classes.exact else np.ones((C, C), bool)
        self.network = Network(drawn.hw.links, classes.of, same)
        self._all = np.arange(C)
        self._teams = [np.flatnonzero(self._all // team == self._all[c] // team) if classes.exact else np.array([c])
                       for c in range(C)]
        self.team_near = team <= at.size.min()
        """whether teams are inside nodes"""
        self.most_slots = most(drawn.placements) if drawn.model.moe else 0
        self._small = flow.small(drawn.layout.group, drawn.hw.links, HEADER, at.many)
        self._met = flow.small(team, drawn.hw.links, HEADER, not self.team_near)
        self._open: dict[tuple, Meeting] = {}
        self._drawn: dict[tuple, tuple[LayerRows, int]] = {}
        self._attention: dict[tuple, cost.Work] = {}
        self._known: dict[int, tuple[Span, ...]] = {}
        self.cuts: dict[int, list[Batch]] = {}
        """micro-batches of each step, which all ranks share"""
        self.modes: set[str] = set()
        """how rows travelled"""
        self._uneven: dict[int, list[float]] = {}

    def rows(self, number: int, layer: int, begun: int, tokens: int) -> LayerRows:
        """What all ranks see alike: drawn once for each micro-batch and layer."""
        key = (self.step, number, layer)
        found, seen = self._drawn.pop(key, (None, 0))
        found = found or self._draw(layer, begun, tokens)
        if seen + 1 < len(self._all):
            self._drawn[key] = found, seen + 1
        return found

    def _draw(self, layer: int, begun: int, tokens: int) -> LayerRows:
        found = self.drawn(layer, begun, tokens)
        self.modes |= {hop.mode for hop in found.there.hops + found.home.hops}
        mean = float(np.average(found.computed, weights=self.drawn.classes.of))
        self._uneven.setdefault(self.step, []).append(float(found.computed.max()) / mean - 1 if mean else 0.0)
        return found

    def imbalance(self, step: int) -> float:
        """(max - mean) / mean of the rows that ranks compute, mean over the layers of a step."""
        return float(np.mean(self._uneven.get(step, [0.0])))

    def attention(self, layer: int, spans: Sequence[Span]) -> cost.Work:
        """Of a layer; the same for all ranks and for all layers that see as far."""
        model = self.drawn.model
        key = (model.attention.window_in(layer), id(spans))
        if key not in self._attention:
            self._attention[key] = cost.attention(model, self.drawn.hw, layer, self.drawn.layout.team, spans)
        return self._attention[key]

    def team_spans(self, spans: Sequence[Span]) -> tuple[Span, ...]:
        """Those of a whole team, whose ranks have the same."""
        return self._known.setdefault(id(spans), tuple(spans) * self.drawn.layout.team)

    def next_step(self, step: int) -> None:
        """What was kept for the last one is let go."""
        if step != self.step:
            self.step = step
            self._attention.clear()
            self._known.clear()

    def tell(self, rank: Rank, kind: str, work: Any, takes: float | None = None) -> Crossing:
        """A small all-to-all of all ranks, or what else takes so many seconds."""
        crossing = Crossing(rank)
        number = (work.number, work.layer) if work else ()
        meeting = self._join(rank, (kind, self.step, *number), self._all, crossing)
        if meeting:
            self._end(meeting, np.full(len(self._all), meeting.ready.max() + (self._small if takes is None
                                                                                 else takes)))
        return crossing

    def meet(self, rank: Rank, work: Any) -> Crossing:
        """A small all-gather of a team."""
        crossing, members = Crossing(rank), self._teams[rank.number]
        meeting = self._join(rank, ("meet", self.step, work.number, int(members[0])), members, crossing)
        if meeting:
            self._end(meeting, np.full(len(members), meeting.ready.max() + self._met))
        return crossing

    def travel(self, rank: Rank, kind: str, work: Any, journey: Journey, crossing: Crossing) -> None:
        """Rows leave; the main thread is busy with their messages for a while."""
        meeting = self._join(rank, (kind, self.step, work.number, work.layer), self._all, crossing)
        first = journey.hops[0]
        rank.now += first.seconds * float(first.messages[rank.number])
        if meeting:
            end = meeting.ready
            if self.drawn.layout.group > 1:
                for hop in journey.hops:
                    end = self.network.move(end, hop)
            self._end(meeting, end)

    def team_travel(self, rank: Rank, kind: str, work: Any, each: float, crossing: Crossing) -> None:
        """Rows go to, or come from, a team."""
        members = self._teams[rank.number]
        meeting = self._join(rank, (kind, self.step, work.number, work.layer, int(members[0])), members, crossing)
        if meeting:
            end = self.network.among(members, meeting.ready, each, self.team_near)
            self._end(meeting, np.full(len(members), end))

    def _join(self, rank: Rank, key: tuple, members: np.ndarray, crossing: Crossing) -> Meeting | None:
        """The meeting, where that was the last one to come."""
        meeting = self._open.setdefault(key, Meeting(members))
        meeting.come[rank.number] = rank.now, crossing
        return self._open.pop(key) if len(meeting.come) == len(members) else None

    def _end(self, meeting: Meeting, at: np.ndarray) -> None:
        for member, end in zip(meeting.members.tolist(), at.tolist()):
            meeting.come[member][1].at = end
            self._resolved(member, end)
