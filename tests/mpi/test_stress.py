"""Thousands of random exchanges on several lanes at once: no deadlock, and no row lost, doubled or misplaced."""

from collections.abc import Generator, Iterator

import numpy as np
import pytest
from conductor import Alarm, conduct
from hypothesis import strategies
from rig import WAYS

from hpcmoe.engine import schedule
from hpcmoe.engine.clock import Clock
from hpcmoe.engine.stream import Event
from hpcmoe.engine.trip import Trip
from hpcmoe.exchange import persistent, staged
from hpcmoe.exchange.interface import Flight, Rows
from hpcmoe.exchange.lane import Lane, open_lanes
from hpcmoe.types import Layout, dense

pytestmark = pytest.mark.mpi
LANES = 4
TRIPS = 48
"""Of each lane, before others are opened."""


def tables(rng: np.random.Generator, R: int) -> Iterator[np.ndarray]:
    """Counts `[from, to]`, one after another; how large they are wanders, and sometimes leaps."""
    size = 3.0
    while True:
        size = min(40.0, max(0.5, size * rng.choice([0.3, 0.8, 1.0, 1.25, 3.0])))
        most = int(size) + 1
        counts = rng.integers(0, most, (R, R), endpoint=True)
        kind = rng.choice(["dense", "sparse", "one", "own", "silent", "single", "none"])
        if kind == "sparse":
            counts *= rng.random((R, R)) < 0.15
        elif kind == "one":  # all to one; its own rows too
            counts[:, np.arange(R) != rng.integers(R)] = 0
        elif kind == "own":
            counts *= np.eye(R, dtype=int)
        elif kind == "silent":
            silent = rng.random(R) < 0.5
            counts[silent] = counts[:, rng.random(R) < 0.3] = 0
        elif kind in ("single", "none"):
            counts[:] = 0
            counts[rng.integers(R), rng.integers(R)] = kind == "single"
        yield counts


def message(number: int, source: np.ndarray, target: np.ndarray, row: np.ndarray, units: int) -> np.ndarray:
    """`[N, units]` uint16: rows that say in which exchange, whence and whither they travel, and which they are."""
    name = ((number * 16 + source) * 16 + target) * 4096 + row
    wide = (name[:, None].astype(np.uint64) * 4 + np.arange(units, dtype=np.uint64) // 4 + 1) * 0x9E3779B97F4A7C15
    return (wide >> np.array([48, 32, 16, 40], np.uint64)[np.arange(units) % 4]).astype(np.uint16)


def places(layout: Layout) -> np.ndarray | slice:
    """Where its rows lie in a buffer."""
    return slice(0, layout.rows) if layout.place is None else layout.place


def travelling(rows: Rows, kind: str) -> Trip:
    """What the schedule waits for."""
    return Trip(rows, kind, 0, 0, lambda trip: None)


class Checker:
    """Fills and checks the rows of one rank."""

    def __init__(self, me: int) -> None:
        self._me = me
        self.problems: list[str] = []

    def fill(self, rows: Rows, number: int, counts: np.ndarray, units: int) -> None:
        """The rows that leave; counts `[from, to]`."""
        buffer, layout = rows.room(counts[self._me], units)
        buffer[places(layout)] = message(number, np.full(layout.rows, self._me), *_each(counts[self._me]), units)

    def look(self, rows: Rows, number: int, counts: np.ndarray, units: int) -> None:
        """The rows that came."""
        source, row = _each(counts[:, self._me])
        want = message(number, source, np.full(len(source), self._me), row, units)
        if not np.array_equal(rows.arrived[places(rows.landing)], want):
            self.problems.append(f"exchange {number}, {rows.mode}, {units} units: counts {counts.tolist()}")


def _each(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The peer and the number of each row, `[N]` each."""
    first = np.cumsum(counts) - counts
    return np.repeat(np.arange(len(counts)), counts), np.arange(counts.sum()) - np.repeat(first, counts)


def trips(lane: Lane, checker: Checker, rng: np.random.Generator, first: int,
          R: int, me: int) -> Generator[Flight, None, None]:
    """Rows there and others back, again and again, as a step takes its turns."""
    out, home = tables(rng, R), tables(rng, R)
    widths = rng.choice([1, 3, 8, 20, 64], 2, replace=False)
    for number in range(first, first + TRIPS):
        there, back, units = next(out), next(home), int(widths[int(rng.integers(5) == 0)])
        checker.fill(lane.dispatch, 2 * number, there, units)
        yield Event()
        lane.headers.start(there[me], back[:, me])
        yield lane.headers
        if not np.array_equal(lane.headers.incoming.counts, there[:, me]):
            checker.problems.append(f"exchange {number}: counts {lane.headers.incoming.counts}")
        lane.dispatch.start(lane.headers.incoming, lane.headers.extent)
        yield travelling(lane.dispatch, "dispatch")
        checker.look(lane.dispatch, 2 * number, there, units)
        checker.fill(lane.home, 2 * number + 1, back, units)
        yield Event()
        lane.home.start(dense(back[:, me], me), lane.headers.extent_home)
        yield travelling(lane.home, "return")
        checker.look(lane.home, 2 * number + 1, back, units)


def campaign(comm, alarm: Alarm, first: int) -> list[str]:
    """A number of trips on lanes of random modes; the problems of this rank. Collective."""
    checker, rng = Checker(comm.rank), np.random.default_rng(first)
    lanes = [lane for n in rng.choice(len(WAYS), LANES // 2, replace=False)
             for lane in open_lanes(comm, alarm.idle, WAYS[n], 2)]
    steps = [trips(lane, checker, np.random.default_rng([first, n]), first + n * TRIPS, comm.size, comm.rank)
             for n, lane in enumerate(lanes)]
    schedule.overlapped(steps, Clock(), alarm.idle, alarm.attend)
    for lane in lanes:
        lane.free()
    return checker.problems[:3]


@pytest.mark.parametrize("count", [1000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_no_row_is_lost_and_no_rank_waits_for_ever(comm, monkeypatch, count):
    """Rungs that would be too large give way to exact counts, and staged pieces are of few rows."""
    monkeypatch.setattr(persistent, "MOST", comm.size * 32 * 40)
    monkeypatch.setattr(staged, "PIECE", comm.size * 16 * 100)
    alarm, done, problems = Alarm(comm), 0, []
    if comm.size > 4 and count == 1000:
        count = 500
    while done < count and not problems:
        problems = alarm.together(lambda: campaign(comm, alarm, done))  # noqa: B023
        done += LANES * TRIPS
    if not alarm.broken:
        alarm.free()
    if problems:
        pytest.fail("\n".join(problems), pytrace=False)


def test_a_leader_that_fails_without_a_word_fails_all_ranks(comm, everywhere):
    """Of the tests themselves: else they would pass on all."""
    def wordless() -> None:
        raise ArithmeticError

    alarm, failed = Alarm(comm), False
    try:
        conduct(comm, alarm, lambda example: [], strategies.builds(wordless), 1)
    except pytest.fail.Exception as failure:
        failed = "ArithmeticError" in str(failure)
    alarm.free()
    everywhere([] if failed else ["passed"])
