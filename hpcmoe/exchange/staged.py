"""Rows by way of the host's memory, in pieces: for MPI libraries that cannot reach the memory where rows are computed.

A piece has the same number of rows of every block at most. While one piece travels, the one before it is copied to
where it belongs, and the next one is made ready: pieces go through two exchanges in turns.
"""

from collections.abc import Callable, Iterator

import numpy as np

from hpcmoe import array
from hpcmoe.exchange.buffer import Buffer, copy_own
from hpcmoe.exchange.interface import PIECE, Rows, until
from hpcmoe.launch import Idle
from hpcmoe.types import Extent, Layout, dense


class Staged:
    """An `interface.Rows` around two of them, which move the host's memory. Collective."""

    stage = "exchange"

    def __init__(self, comm, idle: Idle, make: Callable[[], Rows], memory: str = "host") -> None:
        """`make` opens an exchange of the host's memory; it is called twice. `memory` is that of the rows."""
        self._size, self._me, self._idle = comm.size, comm.rank, idle
        self._lanes = make(), make()
        self._out, self._in = Buffer(memory), Buffer(memory)
        self._begun = self._ended = self._pieces = 0

    @property
    def mode(self) -> str:
        """See `interface.Rows`."""
        return f"{self._lanes[0].mode}, staged"

    def room(self, counts: np.ndarray, units: int) -> tuple[np.ndarray, Layout]:
        """See `interface.Rows`."""
        self._layout = dense(counts, self._me)
        self._rows = self._out.take(self._layout.rows, units)
        return self._rows, self._layout

    def start(self, incoming: Layout, extent: Extent) -> None:
        """See `interface.Rows`."""
        units = self._rows.shape[1]
        self.arrived, self.landing = self._in.take(incoming.rows, units), incoming
        copy_own(self._rows, self._layout, self.arrived, incoming)
        self._height = max(1, PIECE // (2 * units * self._size))
        self._extent = extent
        self._pieces = -(-extent.largest // self._height)
        self._begun = self._ended = 0
        for _ in range(min(2, self._pieces)):
            self._begin()

    def _begin(self) -> None:
        """The next piece leaves. Ranks come to a lane's pieces in the same order, for it has its own communicator.

        The first of each lane leave with `start`, the others by readiness: of those of two exchanges the one is first
        here and the other there.
        """
        lane, piece = self._lanes[self._begun % 2], self._begun
        sent = _part(self._layout, piece, self._height, self._me)
        rows, layout = lane.room(sent, self._rows.shape[1])
        for whole, part in _blocks(self._layout, layout, piece * self._height):
            array.copy(self._rows[whole], rows[part])
        lane.start(dense(_part(self.landing, piece, self._height, self._me), self._me), self._extent_of(piece))
        self._begun += 1

    def _extent_of(self, piece: int) -> Extent:
        """The same on all ranks; `total` at most, for nobody tells how the rows of a piece are spread."""
        rows = min(self._height, self._extent.largest - piece * self._height)
        return Extent(rows, min(self._extent.total, (self._size - 1) * rows), late=piece >= 2)

    def _end(self) -> None:
        """The oldest piece has come: it goes where it belongs, and the next one leaves."""
        lane, piece = self._lanes[self._ended % 2], self._ended
        lane.wait()
        for whole, part in _blocks(self.landing, lane.landing, piece * self._height):
            array.copy(lane.arrived[part], self.arrived[whole])
        self._ended += 1
        if self._begun < self._pieces:
            self._begin()

    def test(self) -> bool:
        """See `interface.Flight`."""
        if self._ended < self._pieces and self._lanes[self._ended % 2].test():
            self._end()
        return self._ended == self._pieces

    def wait(self) -> None:
        """See `interface.Flight`."""
        until(self.test, self._idle)

    def free(self) -> None:
        """See `interface.Rows`."""
        for lane in self._lanes:
            lane.free()


def _part(layout: Layout, piece: int, height: int, me: int) -> np.ndarray:
    """`[R]` int64: rows of each block in a piece; none of the rank's own."""
    counts = np.clip(layout.counts - piece * height, 0, height)
    counts[me] = 0
    return counts


def _blocks(whole: Layout, part: Layout, skipped: int) -> Iterator[tuple[slice, slice]]:
    """For each block of a piece: its rows in the whole, behind `skipped` of the block, and in the piece."""
    for peer in np.flatnonzero(part.counts).tolist():
        first, into, rows = int(whole.first[peer]) + skipped, int(part.first[peer]), int(part.counts[peer])
        yield slice(first, first + rows), slice(into, into + rows)
