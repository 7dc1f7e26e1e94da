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
        self._near_counts, self._far_counts = np.zeros(course.seat.members, int), np.zeros(len(course.seat.rail), int)
        self._units = 0

    @property
    def sent(self) -> np.ndarray:
        """`[len(CLASSES)]` int64: bytes that this rank sent in the last exchange, on both hops; valid behind `wait`.

        Rows of a source for its own node count on the hop inside it only.
        """
        near, far, own = self._near_counts, self._far_counts, self._near_counts[self._seat.place]
        return np.array([own, near.sum() - own, far.sum() - far[self._seat.at]], np.int64) * (2 * self._units)

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

    def _expected(self, incoming: np.ndarray, most: int) -> tuple[Layout, Extent]:
        """Of the hop inside the node; incoming `[members]`: rows from each; `most` from one source for one rank."""
        largest = most * self._seat.grid.crowd
        return dense(incoming, self._seat.place), Extent(largest, largest * self._seat.members, late=True)


class There(TwoHops):
    """Rows to relays, and from those to the ranks that compute. Its users' counts and plans are `plan_send_far`'s; what
    arrives looks as if each source had sent it straight here, but that it may lie in another order."""

    forward: Forward
    """what this rank hands out as a relay, and gathers again"""

    def room(self, counts: np.ndarray, units: int) -> tuple[np.ndarray, Layout]:
        """See `interface.Rows`; `units` with those of the trailer."""
        self._far_counts, self._units = counts[self._seat.rail], units
        rows, layout = self._far.room(self._far_counts, units)
        return rows, self._seat.seen_by_all(layout)

    def ahead(self, most: int, units: int) -> np.ndarray | None:
        """See `interface.Rows`."""
        return self._far.ahead(most, units)

    def start(self, incoming: Layout, extent: Extent) -> None:
        """See `interface.Rows`; what comes here in the end is in the headers."""
        self._far.start(self._seat.along_rail(incoming.counts), extent)
        self._aside.follow()
        reach = self._headers.reach
        self._landing = self._seat.weave(reach)
        self._moves = self._hand_out(*self._expected(self._seat.by_relay(reach), self._headers.most[0]))

    def _hand_out(self, incoming: Layout, extent: Extent) -> Iterator[bool]:
        """The second hop."""
        yield from self._arriving(self._far)
        with self._aside.work():
            self._pack(self._far.arrived, self._far.landing)
        yield from self._doing()
        with self._aside.work():
            self._near.start(incoming, extent)
        yield from self._arriving(self._near)

    def _pack(self, rows: np.ndarray, landing: Layout) -> None:
        """Rows of the first hop, once for each rank of the node that has one of their slots."""
        place, behind = landing.place, slice(self._units - self._by.width, self._units)
        trailer = array.host(rows[:, behind]).view(np.int16)
        self.forward = plan_forward(trailer if place is None else trailer[place], landing.counts, self._seat,
                                    self._by.top_k)
        hand = self.forward.hand
        self._near_counts = hand.counts
        out, _ = self._near.room(hand.counts, self._units)
        array.take(rows, hand.token if place is None else place[hand.token], out)
        out[:, behind] = array.beside(hand.trailer.view(np.uint16), out)

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
        self._near_counts, self._units = self._seat.by_relay(counts), units
        rows, _ = self._near.room(self._near_counts, units)
        return rows, self._seat.weave(counts)

    def ahead(self, most: int, units: int) -> None:
        """See `interface.Rows`."""

    def start(self, incoming: Layout, extent: Extent) -> None:
        """See `interface.Rows`; `incoming` is by relay."""
        forward = self._there.forward
        self._near.start(*self._expected(forward.hand.home_counts, self._headers.most[1]))
        self._aside.follow()
        self._far_counts = forward.counts if self._by.presum else forward.answers
        self._far.prepare(extent, self._units)
        self._moves = self._gather(forward, self._seat.along_rail(incoming.counts), replace(extent, late=True))

    def _gather(self, forward: Forward, incoming: Layout, extent: Extent) -> Iterator[bool]:
        """The second hop."""
        out, layout = self._far.room(self._far_counts, self._units)
        yield from self._arriving(self._near)
        with self._aside.work():
            self._pack(self._near.arrived, forward, out, layout)
        yield from self._doing()
        with self._aside.work():
            self._far.start(incoming, extent)
        yield from self._arriving(self._far)

    def _pack(self, rows: np.ndarray, forward: Forward, out: np.ndarray, layout: Layout) -> None:
        """Answers of the node's ranks, for the sources in the order of their tokens."""
        ends, some = np.cumsum(layout.counts), layout.counts > 0
        for end, count, first in zip(*(values[some].tolist() for values in (ends, layout.counts, layout.first))):
            part, into = slice(end - count, end), out[first:first + count]
            if self._by.presum:
                self._by.presum.sum(rows, forward.home[part], forward.weight[part], into)
            else:
                array.take(rows, forward.hand.home[part], into)

    @property
    def arrived(self) -> np.ndarray:
        """See `interface.Rows`."""
        return self._far.arrived

    @property
    def landing(self) -> Layout:
        """See `interface.Rows`. By relay."""
        return self._seat.seen_by_all(self._far.landing)
