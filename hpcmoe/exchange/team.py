"""What the ranks of a team tell each other, which share the heads of attention.

With t ranks, each of T tokens of a micro-batch, H values a token: of every layer each rank sends its tokens, normed, to
the others, (t - 1) T H values of the compute dtype, and to each of them what its heads add to theirs, as many values in
float32.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from hpcmoe.exchange.interface import Rows, until
from hpcmoe.exchange.lane import Way, open_rows
from hpcmoe.exchange.requests import make_gather
from hpcmoe.launch import Idle
from hpcmoe.types import Extent, Span


class Meeting:
    """Which pieces of sequences each rank has in a micro-batch: a persistent all-gather. A `Flight`.

    Collective over `comm`, which is duplicated.
    """

    stage = "exchange"

    def __init__(self, comm, idle: Idle, most: int) -> None:
        """`most` is the largest number of a rank's sequences."""
        self._comm, self._idle = comm.Dup(), idle
        self._mine, self._all = np.zeros((most, 3), np.int64), np.zeros((comm.size, most, 3), np.int64)
        self._request = make_gather(self._comm, self._mine, self._all)

    def start(self, spans: Sequence[Span]) -> None:
        """`spans` are this rank's, in the order of their rows."""
        self._mine[...] = 0
        for row, span in zip(self._mine, spans):
            row[:] = span.slot, span.rows, span.cached
        self._request.Start()

    def test(self) -> bool:
        """See `interface.Flight`."""
        return self._request.Test()

    def wait(self) -> None:
        """See `interface.Flight`."""
        until(self._request.Test, self._idle)

    def spans(self, slots: int) -> list[Span]:
        """Those of all ranks, valid behind `wait`: their rows one rank behind the other, slots in blocks of `slots`."""
        found, first = [], 0
        for rank, rows in enumerate(self._all.tolist()):
            for slot, count, cached in rows:
                if count:
                    found.append(Span(rank * slots + slot, first, count, cached))
                    first += count
        return found

    @property
    def rows(self) -> np.ndarray:
        """`[t]` int64: tokens of each rank."""
        return self._all[:, :, 1].sum(axis=1)

    def free(self) -> None:
        """Collective."""
        self._request.Free()
        self._comm.Free()


@dataclass(frozen=True)
class TeamLane:
    """The exchanges of one micro-batch among the ranks of a team, layer after layer."""

    meeting: Meeting
    gather: Rows
    """tokens to all of them"""
    bring: Rows
    """and back what each of them adds"""

    def extents(self) -> tuple[Extent, Extent]:
        """How much both move; the same on all ranks."""
        rows = self.meeting.rows
        largest, others = int(rows.max()), len(rows) - 1
        return Extent(largest, largest * others), Extent(largest, int(rows.sum() - rows.min()))

    def free(self) -> None:
        """Collective."""
        for exchange in (self.meeting, self.gather, self.bring):
            exchange.free()


def open_team(comm, idle: Idle, way: Way, count: int, most: int) -> list[TeamLane]:
    """Exchanges of `count` micro-batches; `most` as in `Meeting`. Collective over `comm`, the team's."""
    flat = replace(way, by=None, hops=None, exact=False)
    return [TeamLane(Meeting(comm, idle, most), open_rows(comm, idle, flat), open_rows(comm, idle, flat))
            for _ in range(count)]
