"""Rows by way of the host's memory, in pieces: for MPI libraries that cannot reach the memory where rows are computed.

A piece has the same number of rows of every block at most. Pieces go through two exchanges in turns: while one piece
travels, the one before it is copied to where it belongs, and the next one is made ready.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from hpcmoe.exchange.buffer import Buffer, copy_own
from hpcmoe.exchange.copies import Copies
from hpcmoe.exchange.interface import PIECE, Hop, until
from hpcmoe.launch import Idle
from hpcmoe.types import Extent, Layout, dense


class Staged:
    """An `interface.Rows` around two of them, which move the host's memory. Collective."""

    stage = "exchange"

    def __init__(self, comm, idle: Idle, make: Callable[[], Hop], memory: str, line: list["Staged"]) -> None:
        """`make` opens an exchange of the host's memory; it is called twice. `memory` is that of the rows.

        `line` is shared by all that may be under way together; it holds those that are, in the order of their starts,
        which is the same on all ranks. Only the first moves: by turns both would arrive when the last one does, and
        what is to be computed with the first one's rows would wait for no reason.
        """
        self._size, self._me, self._idle, self._line = comm.size, comm.rank, idle, line
        self._ferries = Ferry(make(), memory), Ferry(make(), memory)
        self._out, self._in = Buffer(memory), Buffer(memory)

    @property
    def mode(self) -> str:
        """See `interface.Rows`."""
        return f"{self._ferries[0].lane.mode}, staged"

    def room(self, counts: np.ndarray, units: int) -> tuple[np.ndarray, Layout]:
        """See `interface.Rows`."""
        self._layout = dense(counts, self._me)
        self._rows = self._out.take(self._layout.rows, units)
        return self._rows, self._layout

    def ahead(self, most: int, units: int) -> np.ndarray:
        """See `interface.Rows`."""
        return self._out.take(most, units)

    def start(self, incoming: Layout, extent: Extent) -> None:
        """See `interface.Rows`.

        The only piece of a small exchange leaves here. Those of a large one leave by readiness, once all exchanges that
        started before have arrived: they would share the link with them. Ranks come to a ferry's pieces in the same
        order, for it has its own communicator; but of pieces of two exchanges one may be first here, the other there.
        """
        units = self._rows.shape[1]
        self.arrived, self.landing = self._in.take(incoming.rows, units), incoming
        copy_own(self._rows, self._layout, self.arrived, incoming)
        height = self._height(units)
        pieces = range(-(-extent.largest // height))
        for first, ferry in enumerate(self._ferries):
            ferry.load(self._cut(piece, height, extent) for piece in pieces[first::2])
        if len(pieces) == 1:
            self._ferries[0].leave()
        self._line.append(self)

    def prepare(self, extent: Extent, units: int) -> None:
        """See `interface.Hop`. Pieces of a large exchange make nothing anyway."""
        if 0 < extent.largest <= self._height(units):
            self._ferries[0].lane.prepare(self._limit(0, self._height(units), extent), units)

    def _height(self, units: int) -> int:
        """Rows of each block in a piece at most."""
        return max(1, PIECE // (2 * units * max(1, self._size - 1)))

    def _limit(self, piece: int, height: int, extent: Extent) -> Extent:
        """Of the `piece`-th one; the same on all ranks. `total` at most, for nobody tells how its rows are spread."""
        rows = min(height, extent.largest - piece * height)
        return Extent(rows, min(extent.total, (self._size - 1) * rows), extent.late or extent.largest > height)

    def _cut(self, piece: int, height: int, extent: Extent) -> "Piece":
        """The `piece`-th one, with `height` rows of each block at most."""
        limit = self._limit(piece, height, extent)
        out, into = (_part(layout, piece, height, self._me) for layout in (self._layout, self.landing))
        return Piece(out, dense(into, self._me), limit, self._rows, self.arrived,
                     lambda part: _blocks(self._layout, part, piece * height),
                     lambda part: _blocks(self.landing, part, piece * height))

    def test(self) -> bool:
        """See `interface.Flight`."""
        while self._line and all([ferry.test() for ferry in self._line[0]._ferries]):
            self._line.pop(0)
        return self not in self._line

    def wait(self) -> None:
        """See `interface.Flight`."""
        until(self.test, self._idle)

    def free(self) -> None:
        """See `interface.Rows`."""
        for ferry in self._ferries:
            ferry.lane.free()


Places = Callable[[Layout], Iterator[tuple[slice, slice]]]
"""The layout of a piece -> for each of its blocks, the rows among all and those in the piece"""


@dataclass(frozen=True)
class Piece:
    """Some rows of every block."""

    counts: np.ndarray
    """`[R]`: those that leave"""
    incoming: Layout
    extent: Extent
    rows: np.ndarray
    """all that leave,"""
    arrived: np.ndarray
    """and all that come"""
    taken: Places
    put: Places


class Ferry:
    """An exchange of the host's memory that moves piece after piece: each is loaded, travels, and is landed."""

    def __init__(self, lane: Hop, memory: str) -> None:
        self.lane, self._loading, self._landing = lane, Copies(memory), Copies(memory)
        self._pieces: Iterator[Piece] = iter(())
        self._piece: Piece | None = None
        self._travels = False

    def load(self, pieces: Iterator[Piece]) -> None:
        """The first of `pieces` is made ready; the ones before are landed."""
        self._pieces, self._travels = pieces, False
        self._load()

    def _load(self) -> None:
        self._piece = next(self._pieces, None)
        if self._piece is not None:
            rows, layout = self.lane.room(self._piece.counts, self._piece.rows.shape[1])
            self._loading.begin((self._piece.rows[whole], rows[part]) for whole, part in self._piece.taken(layout))

    def leave(self) -> None:
        """The piece that was made ready leaves, if there is one."""
        if self._piece is not None:
            self._loading.wait()
            self._landing.wait()
            self.lane.start(self._piece.incoming, self._piece.extent)
            self._travels = True

    def test(self) -> bool:
        """Moves the pieces on; whether all are where they belong."""
        if self._travels and self.lane.test():
            self._land()
        if self._piece is not None and not self._travels and self._loading.done() and self._landing.done():
            self.leave()
        return self._piece is None and self._landing.done()

    def _land(self) -> None:
        """The piece has come: it goes where it belongs, while the next one is made ready."""
        piece, self._travels = self._piece, False
        assert piece is not None
        self._landing.begin((self.lane.arrived[part], piece.arrived[whole])
                            for whole, part in piece.put(self.lane.landing))
        self._load()


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
