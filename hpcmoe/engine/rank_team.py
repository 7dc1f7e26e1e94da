"""What a team's attention has in common on every device: the meeting, and the two exchanges of each layer."""

from typing import Any, Protocol

import numpy as np

from hpcmoe.engine.clock import Clock
from hpcmoe.engine.together import Split, Together
from hpcmoe.engine.trip import Trip
from hpcmoe.exchange.interface import Flight, Rows
from hpcmoe.exchange.team import TeamLane
from hpcmoe.exchange.watch import Unwatched, Watch
from hpcmoe.types import Extent, Layout


class TeamSegments(Protocol):
    """What `RankTeam` needs of a device's segments."""

    rank: int
    classes: np.ndarray
    """`[len(CLASSES), R]` int64: see `trip.classes`"""
    watch: Watch | Unwatched
    clock: Clock

    def depart(self, rows: Rows, kind: str, work: Any) -> Trip:
        """An exchange begins."""


class RankTeam:
    """The part of a `layer.Team` that calls MPI, on the main thread."""

    def __init__(self, segments: TeamSegments, split: Split, lanes: list[TeamLane], slots: int) -> None:
        """`slots` are those of one rank."""
        self._on, self._lanes, self._slots = segments, lanes, slots
        self._rank, self._size = split.heads.number, split.heads.of
        first = segments.rank - self._rank
        self._classes = segments.classes[:, first:first + self._size]

    def meet(self, work: Any) -> Flight:
        """See `layer.Team`."""
        work.together = Together(self._lanes[work.number], self._rank)
        self._on.watch.mark("meeting", 0, work.number, work.batch.rows)
        work.together.lane.meeting.start(work.batch.spans)
        return work.together.lane.meeting

    def attends(self, work: Any) -> bool:
        """See `layer.Team`."""
        return self._of(work).waits

    def gather(self, work: Any) -> Trip:
        """See `layer.Team`."""
        return self._leave(work, "gather")

    def bring(self, work: Any) -> Trip:
        """See `layer.Team`."""
        return self._leave(work, "bring")

    def free(self) -> None:
        """Collective over the team."""
        for lane in self._lanes:
            lane.free()

    def _of(self, work: Any) -> Together:
        return work.together

    def _leave(self, work: Any, kind: str) -> Trip:
        """One of the two exchanges begins."""
        rows, incoming, extent = self._of(work).leave(kind)
        self._on.watch.mark(kind, work.layer, work.number, work.leaving)
        trip = self._on.depart(rows, kind, work)
        with self._on.clock.starting(trip):
            self._start(work, rows, incoming, extent)
            self._on.watch.by(rows.mode)
        return trip

    def _start(self, work: Any, rows: Rows, incoming: Layout, extent: Extent) -> None:
        rows.start(incoming, extent)

    def _leaves(self, work: Any, counts: np.ndarray, units: int) -> None:
        """Rows are ready: counts `[t]` of `units` uint16."""
        work.leaving, work.sent = int(counts.sum()), self._classes @ counts * (2 * units)
        self._of(work).waits = True
