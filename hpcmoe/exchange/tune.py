"""What each mode costs here, as measured between all ranks: by what `exchange.mode = "auto"` goes."""

import time
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
from mpi4py import MPI

from hpcmoe.exchange.interface import MOST, Rows, until
from hpcmoe.exchange.lane import Way, open_rows
from hpcmoe.launch import Idle
from hpcmoe.types import MODES, Extent, Layout, Speeds, dense

LARGEST = 1 << 20
"""Bytes to each peer of the largest exchange that is tried."""
ROUNDS = 7


def measure(comm, idle: Idle, units: int, way: Way, rounds: int = ROUNDS) -> Speeds:
    """One direction of each mode, else as `way`, with 1, 4, 16, … rows of `units` uint16 between any two ranks.

    Collective; equal on all ranks.
    """
    most = max(1, min(LARGEST, MOST // comm.size) // (2 * units))
    rows = [4 ** power for power in range(most.bit_length()) if 4 ** power <= most]
    modes = {mode: open_rows(comm, idle, replace(way, mode=mode)) for mode in MODES}
    seconds = []
    for count in rows:
        contest = {mode: repeat(exchange, even(comm.size, count), comm.rank, units) for mode, exchange in modes.items()}
        seconds.append(medians(comm, idle, contest, rounds))
    for exchange in modes.values():
        exchange.free()
    return Speeds(np.array(rows) * 2.0 * units, *(np.array([s[mode] for s in seconds]) for mode in modes))


def even(ranks: int, rows: int) -> np.ndarray:
    """`[from, to]` int64: every rank sends as many rows to every other, and none to itself."""
    return rows * (1 - np.eye(ranks, dtype=np.int64))


def repeat(exchange: Rows, table: np.ndarray, me: int, units: int,
           fill: Callable[[np.ndarray, Layout], None] = lambda rows, layout: None) -> Callable[[], None]:
    """An exchange of the counts in `table` `[from, to]`, to be run again and again; it has been run already.

    `fill` puts rows into the room. Collective.
    """
    incoming = dense(table[:, me], me)
    extent = Extent(int(table.max()), int((table.sum(axis=1) - table.diagonal()).max()))

    def run() -> None:
        exchange.start(incoming, extent)
        exchange.wait()
    for _ in range(2):  # the second time, rungs are there, if the exchange is new or its counts grow
        rows, layout = exchange.room(table[me], units)
        fill(rows, layout)
        run()
    return run


def medians(comm, idle: Idle, contest: Mapping[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    """Median seconds of each contestant, by name, until the slowest rank's end. They take turns. Collective."""
    seconds = np.zeros((rounds, len(contest)))
    for times in seconds:
        for place, run in enumerate(contest.values()):
            until(comm.Ibarrier().Test, idle)
            begin = time.perf_counter()
            run()
            times[place] = time.perf_counter() - begin
    comm.Allreduce(MPI.IN_PLACE, seconds, MPI.MAX)
    return dict(zip(contest, np.median(seconds, axis=0).tolist()))
