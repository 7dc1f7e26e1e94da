"""`bench topology`: latency and rate between ranks, as this program's own messages have them.

A latency is half of a round trip of a few bytes, the calls from Python included. A rate is the mean over large
messages, one behind another for a while, with as many on their way back; the mean, for a link that several pairs share
may be now one's and now another's. So a message takes latency + bytes / rate. `links` has who meets whom, and when.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from mpi4py import MPI

from hpcmoe import array, switches
from hpcmoe.bench.links import Round, alone, inside, spread, together
from hpcmoe.bench.stream import Stream
from hpcmoe.errors import JobError
from hpcmoe.exchange.interface import until
from hpcmoe.files.topology import FASTEST, Network
from hpcmoe.launch import Idle, World, meet
from hpcmoe.slots import Topology

SMALL = 4
"""uint16 values of a message whose latency is measured."""
TRIPS, WARM = 21, 2
"""Round trips of each pair, whose median counts, and those before them."""
SMALLEST, LARGEST = 1 << 15, 1 << 25
"""uint16 values of a message whose rate is: the first size that takes the fastest pair `ENOUGH` seconds, or the
largest."""
ENOUGH = 3e-3
WINDOW, UNDER_WAY = 0.1, 2
"""Seconds in which messages leave, and how many are under way meanwhile."""
EVERY = 64
"""Ranks up to which every pair is measured."""


def check(ranks: int) -> None:
    """Raises `JobError` where there is nothing to measure."""
    if ranks < 2:
        raise JobError("links need two ranks or more: mpiexec -n 2 hpcmoe bench topology")


def measure(world: World) -> Network:
    """Collective; all ranks get the same. Some seconds for hundreds of ranks."""
    node, every = world.nodes, world.size <= EVERY
    gauge = Gauge(world.comm.Dup(), world.idle, world.memory)
    latency = gauge.latencies(inside(node) + alone(node, every))
    rate = np.fmax(gauge.rates(inside(node)), gauge.rates(together(node, every)))
    gauge.comm.Free()
    np.fill_diagonal(latency, 0)
    np.fill_diagonal(rate, np.inf)
    address, pattern = zip(*world.comm.allgather(switches.told()))
    return Network(Topology(np.array(node, np.int32), spread(node, latency), spread(node, rate)), world.hosts, address,
                   pattern, world.library, world.memory)


@dataclass(frozen=True)
class Gauge:
    """What measures rounds of pairs. Its tables are `[R, R]` float64, from and to, NaN for those who did not meet."""

    comm: Any
    idle: Idle
    memory: str

    def latencies(self, rounds: Sequence[Round]) -> np.ndarray:
        """Seconds. Collective; all ranks get the same."""
        here, there = self._room(SMALL), self._room(SMALL)
        found = self._all(rounds, lambda peer, leads: self._trip(peer, leads, here, there))
        return np.fmax(found, found.T)  # who leads knows

    def rates(self, rounds: Sequence[Round]) -> np.ndarray:
        """Bytes/s, as those see it to whom they come. Collective; all ranks get the same."""
        if not rounds:
            return np.full((self.comm.size,) * 2, np.nan)
        size = SMALLEST
        while size < LARGEST and 2 * size / np.nanmax(self._streams(rounds[:1], size, 0.0)) < ENOUGH:
            size *= 4
        return np.minimum(self._streams(rounds, size, WINDOW), FASTEST)

    def _streams(self, rounds: Sequence[Round], size: int, seconds: float) -> np.ndarray:
        here, there = self._room(size), [self._room(size) for _ in range(UNDER_WAY)]
        return self._all(rounds, lambda peer, leads: self._stream(peer, here, there, seconds))

    def _all(self, rounds: Sequence[Round], work: Callable[[int, bool], float]) -> np.ndarray:
        """A table of what `work` gives for a peer, and whether this rank leads: its own view of what comes from there.

        All begin a round together, within a nap. Collective.
        """
        me = self.comm.rank
        found = np.zeros((self.comm.size,) * 2)
        for pairs in rounds:
            meet(self.comm)  # who has nobody to meet sleeps there, and keeps no core from the others
            for a, b in pairs:
                if me in (a, b):
                    found[a + b - me, me] = work(a + b - me, me == a)
        until(self.comm.Iallreduce(MPI.IN_PLACE, found).Test, self.idle)
        return np.where(found > 0, found, np.nan)

    def _trip(self, peer: int, leads: bool, here: Any, there: Any) -> float:
        """Median seconds of a message to the other rank, half of there and back; 0 on the rank that does not lead."""
        send, receive = self.comm.Send_init(_message(here), peer), self.comm.Recv_init(_message(there), peer)
        spans = np.empty(WARM + TRIPS)
        for place in range(len(spans)):
            begin = time.perf_counter()
            for request in (send, receive) if leads else (receive, send):
                request.Start()
                until(request.Test, self.idle)
            spans[place] = time.perf_counter() - begin
        send.Free()
        receive.Free()
        return float(np.median(spans[WARM:])) / 2 if leads else 0.0

    def _stream(self, peer: int, here: Any, there: Sequence[Any], seconds: float) -> float:
        """Bytes/s from the other rank."""
        stream = Stream(self.comm, peer, here, there, seconds)
        until(stream.test, self.idle)
        return stream.rate()

    def _room(self, size: int) -> Any:
        """uint16 `[size]`, every page of it there."""
        found = array.empty((size,), self.memory)
        found[:] = 1
        array.settle(found)
        return found


def _message(values: Any) -> list:
    return [values, MPI.UINT16_T]
