"""Rows in two hops: between nodes each token travels once, and relays hand it out inside theirs.

The first hop there, and the last one home, go between the ranks of a rail (`grid.Grid`) as any rows do, in whichever
mode; the hops inside a node by exact counts. The second hop of either way starts by readiness, when a rank finds in
`test` that its first one has arrived. So whoever waits for one exchange has to move all others on that are under way;
once a rank's own part has arrived, the others need nothing more from it.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from hpcmoe import array
from hpcmoe.exchange.copies import Aside
from hpcmoe.exchange.grid import Seat
from hpcmoe.exchange.headers import Headers
from hpcmoe.exchange.interface import Hop, until
from hpcmoe.exchange.lane import Lane, Way, open_rows
from hpcmoe.exchange.relayed import Relayed
from hpcmoe.exchange.route_far import Forward, plan_forward
from hpcmoe.exchange.staged import Staged
from hpcmoe.exchange.tallies import Tallies
from hpcmoe.launch import Idle
from hpcmoe.traffic import CLASSES
from hpcmoe.types import Extent, Layout, dense


def open_twohop(comm, idle: Idle, way: Way, by: Relayed, count: int, experts: int = 0) -> list[Lane]:
    """Exchanges of `count` micro-batches; `way` says how rows travel between nodes, `experts` is E. Collective over
    `comm`.

    Their headers are started with `SendPlan.behind`.
    """
    seat = Seat(by.grid, comm.rank)
    rail = comm.Split(int(by.grid.rail[comm.rank]), comm.rank)
    node = comm.Split(int(by.grid.node[comm.rank]), comm.rank)
    line: list[Staged] = []  # of what starts in the same order everywhere; the others have lines of their own
    lanes = []
    exact = replace(way, mode="alltoallv")
    for _ in range(count):
        course = Course(seat, by, Headers(comm, idle, relayed=True), idle, way.memory)
        there = There(open_rows(rail, idle, way, line), open_rows(node, idle, exact), course)
        back = Back(open_rows(rail, idle, way), open_rows(node, idle, exact), course, there)
        tallies = Tallies(comm, idle, experts) if way.exact else None
        lanes.append(Lane(course.headers, there, back, tallies, by))
    rail.Free()
    node.Free()
    return lanes


@dataclass(frozen=True)
class Course:
    """What both ways of a micro-batch know."""

    seat: Seat
    by: Relayed
    headers: Headers
    idle: Idle
    memory: str


class TwoHops:
    """What both ways share. An `interface.Rows` around two of them."""

    stage = "exchange"

    def __init__(self, far: Hop, near: Hop, course: Course) -> None:
        self._far, self._near, self._aside = far, near, Aside(course.memory)
        self._seat, self._by, self._headers, self._idle = course.seat, course.by, course.headers, course.idle
        self._moves: Iterator[bool] = iter(())
        """ends when all has arrived"""
        self.sent = np.zeros(len(CLASSES), np.int64)
        """bytes that this rank sent in the last exchange, on both hops; valid behind `wait`. Rows of a source for its
        own node count on the hop inside it only."""

    @property
    def mode(self) -> str:
        """See `interface.Rows`."""
        return f"twohop, {self._far.mode}"

    def test(self) -> bool:
        """See `interface.Flight`. Moves the hops on."""
        return next(self._moves, True)

    def wait(self) -> None:
        """See `interface.Flight`."""
        until(self.test, self._idle)

    def free(self) -> None:
        """See `interface.Rows`."""
        self._far.free()
        self._near.free()

    def _arriving(self, hop: Hop) -> Iterator[bool]:
        while not (hop.test() and self._aside.done()):
            yield False

    def _doing(self) -> Iterator[bool]:
        while not self._aside.done():
            yield False

    def _start_near(self, incoming: np.ndarray, most: int) -> None:
        """The hop inside the node; incoming `[members]`: rows from each; `most` for one rank from one source."""
        largest = most * self._seat.grid.crowd
        self._near.start(dense(incoming, self._seat.place), Extent(largest, largest * self._seat.members, late=True))

    def _count(self, near: np.ndarray, far: np.ndarray, units: int) -> None:
        """`sent`, from rows of `units` uint16 to each rank of the node and to each of the rail."""
        own = near[self._seat.place]
        self.sent = np.array([own, near.sum() - own, far.sum() - far[self._seat.at]], np.int64) * (2 * units)


class There(TwoHops):
    """Rows to relays, and from those to the ranks that compute. Its users' counts and plans are `plan_send_far`'s; what
    arrives looks as if each source had sent it straight here, but that it may lie in another order."""

    forward: Forward
    """what this rank hands out as a relay, and gathers again"""

    def room(self, counts: np.ndarray, units: int) -> tuple[np.ndarray, Layout]:
        """See `interface.Rows`; `units` with those of the trailer."""
        self._counts = counts[self._seat.rail]
        rows, layout = self._far.room(self._counts, units)
        return rows, self._seat.seen_by_all(layout)

    def ahead(self, most: int, units: int) -> np.ndarray | None:
        """See `interface.Rows`."""
        return self._far.ahead(most, units)

    def start(self, incoming: Layout, extent: Extent) -> None:
        """See `interface.Rows`; what comes here in the end is in the headers."""
        self._far.start(self._seat.along_rail(incoming.counts), extent)
        self._aside.follow()
        self._moves = self._hand_out(self._headers.reach, self._headers.most[0])

    def _hand_out(self, reach: np.ndarray, most: int) -> Iterator[bool]:
        """The second hop; reach `[R]`: rows of each source that come here, `most` from one for one."""
        yield from self._arriving(self._far)
        with self._aside.work():
            self._pack(self._far.arrived, self._far.landing)
        yield from self._doing()
        with self._aside.work():
            self._start_near(self._seat.by_relay(reach), most)
        self._landing = self._seat.weave(reach)
        yield from self._arriving(self._near)

    def _pack(self, rows: np.ndarray, landing: Layout) -> None:
        """Rows of the first hop, once for each rank of the node that has one of their slots."""
        place, units = landing.place, rows.shape[1]
        behind = slice(units - self._by.width, units)
        trailer = array.host(rows[:, behind]).view(np.int16)
        self.forward = plan_forward(trailer if place is None else trailer[place], landing.counts, self._seat,
                                    self._by.top_k, self._by.presum is not None)
        hand = self.forward.hand
        out, _ = self._near.room(hand.counts, units)
        array.take(rows, hand.token if place is None else place[hand.token], out)
        out[:, behind] = array.beside(hand.trailer.view(np.uint16), out)
        self._count(hand.counts, self._counts, units)

    @property
    def arrived(self) -> np.ndarray:
        """See `interface.Rows`."""
        return self._near.arrived

    @property
    def landing(self) -> Layout:
        """See `interface.Rows`. By source, each block in the order of its tokens."""
        return self._landing


class Back(TwoHops):
    """Answers to the relays of the rows that came by `There`, and from those home: by relay, or summed."""

    def __init__(self, far: Hop, near: Hop, course: Course, there: There) -> None:
        super().__init__(far, near, course)
        self._there = there

    def room(self, counts: np.ndarray, units: int) -> tuple[np.ndarray, Layout]:
        """See `interface.Rows`; counts by source, as in a flat exchange."""
        layout = self._seat.weave(counts)
        self._counts, self._units = self._seat.by_relay(counts), units
        rows, _ = self._near.room(self._counts, units)
        return rows, layout

    def ahead(self, most: int, units: int) -> None:
        """See `interface.Rows`."""

    def start(self, incoming: Layout, extent: Extent) -> None:
        """See `interface.Rows`; `incoming` is by relay."""
        self._start_near(self._there.forward.hand.home_counts, self._headers.most[1])
        self._aside.follow()
        self._far.prepare(extent, self._units)
        self._moves = self._gather(self._seat.along_rail(incoming.counts), replace(extent, late=True))

    def _gather(self, incoming: Layout, extent: Extent) -> Iterator[bool]:
        """The second hop."""
        yield from self._arriving(self._near)
        with self._aside.work():
            self._pack(self._near.arrived)
        yield from self._doing()
        with self._aside.work():
            self._far.start(incoming, extent)
        yield from self._arriving(self._far)

    def _pack(self, rows: np.ndarray) -> None:
        """Answers of the node's ranks, for the sources in the order of their tokens."""
        forward, presum = self._there.forward, self._by.presum
        counts = forward.home_counts
        out, layout = self._far.room(counts, self._units)
        ends = np.cumsum(counts)
        for end, count, first in zip(*(values[counts > 0].tolist() for values in (ends, counts, layout.first))):
            part, into = slice(end - count, end), out[first:first + count]
            if presum:
                presum.sum(rows, forward.home[part], forward.weight[part], into)
            else:
                array.take(rows, forward.hand.home[part], into)
        self._count(self._counts, counts, self._units)

    @property
    def arrived(self) -> np.ndarray:
        """See `interface.Rows`."""
        return self._far.arrived

    @property
    def landing(self) -> Layout:
        """See `interface.Rows`. By relay."""
        return self._seat.seen_by_all(self._far.landing)
