"""`bench topology`: latency and rate between ranks, as this program's own messages have them.

A latency is half of a round trip of a few bytes, the calls from Python included. A rate is that of a large message
while as large a one comes back, from the start of both to the receiver's end of its own, less the latency: an exchange
takes latency + bytes / rate. `links` has who meets whom.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from mpi4py import MPI

from hpcmoe import array, switches
from hpcmoe.bench.links import Round, alone, inside, spread, together
from hpcmoe.errors import JobError
from hpcmoe.exchange.interface import until
from hpcmoe.files.topology import FASTEST, Network
from hpcmoe.launch import Idle, World, meet
from hpcmoe.slots import Topology

SMALL = 4
"""uint16 values of a message whose latency is measured."""
SMALLEST, LARGEST = 1 << 15, 1 << 25
"""uint16 values of one whose rate is: the first size that takes the fastest pair `ENOUGH` seconds, or the largest."""
ENOUGH = 5e-3
TRIPS, POURS = 21, 7
"""Of each pair; their median counts."""
WARM = 2
"""Before them, which do not count."""
EVERY = 64
"""Ranks up to which every pair is measured."""


def check(ranks: int) -> None:
    """Raises `JobError` where there is nothing to measure."""
    if ranks < 2:
        raise JobError("links need two ranks or more: mpiexec -n 2 hpcmoe bench topology")


def measure(world: World) -> Network:
    """Collective; all ranks get the same. Seconds for hundreds of ranks."""
    node, every = world.nodes, world.size <= EVERY
    gauge = Gauge(world.comm.Dup(), world.idle, world.memory)
    latency = gauge.latencies(inside(node) + alone(node, every))
    np.fill_diagonal(latency, 0)
    latency = spread(node, latency)
    rate = np.fmax(gauge.rates(inside(node), latency), gauge.rates(together(node, every), latency))
    np.fill_diagonal(rate, np.inf)
    gauge.comm.Free()
    address, pattern = zip(*world.comm.allgather(switches.told()))
    return Network(Topology(np.array(node, np.int32), latency, spread(node, rate)), world.hosts, address, pattern,
                   world.library, world.memory)


@dataclass(frozen=True)
class Gauge:
    """What measures rounds of pairs. All methods are collective, and all ranks get the same."""

    comm: Any
    idle: Idle
    memory: str

    def latencies(self, rounds: Sequence[Round]) -> np.ndarray:
        """`[R, R]` float64 seconds, NaN for those who did not meet."""
        here, there = self._room(SMALL), self._room(SMALL)
        found = self._all(rounds, lambda a, b: self._trip(a, b, here, there))
        return np.fmax(found, found.T)  # each is known to one of the two

    def rates(self, rounds: Sequence[Round], latency: np.ndarray) -> np.ndarray:
        """`[R, R]` float64 bytes/s, NaN for those who did not meet. latency `[R, R]` seconds."""
        if not rounds:
            return np.full_like(latency, np.nan)
        size = SMALLEST
        while size < LARGEST and np.nanmin(self._spans(rounds[:1], size, 1)) < ENOUGH:
            size *= 4
        spans = self._spans(rounds, size, POURS)
        return np.minimum(2 * size / np.fmax(spans - latency, spans / 2), FASTEST)

    def _spans(self, rounds: Sequence[Round], size: int, repeats: int) -> np.ndarray:
        """`[R, R]` float64 seconds of messages of `size` values, NaN for those who did not meet."""
        here, there = self._room(size), self._room(size)
        return self._all(rounds, lambda a, b: self._pour(a, b, here, there, repeats))

    def _all(self, rounds: Sequence[Round], work: Callable[[int, int], float]) -> np.ndarray:
        """`[R, R]` float64: what `work` gives for each pair (a, b), at [a, b] what b saw; NaN for all others.

        All ranks begin a round together, within a nap.
        """
        me = self.comm.rank
        found = np.zeros((self.comm.size,) * 2)
        for pairs in rounds:
            meet(self.comm)  # who has nobody to meet sleeps there, and keeps no core from the others
            for a, b in pairs:
                if me in (a, b):
                    found[a + b - me, me] = work(a, b)
        until(self.comm.Iallreduce(MPI.IN_PLACE, found).Test, self.idle)
        return np.where(found > 0, found, np.nan)

    def _trip(self, a: int, b: int, here: Any, there: Any) -> float:
        """Seconds of a message from one to the other: the median of half round trips on rank a, 0 on the other."""
        peer = a + b - self.comm.rank
        send, receive = self.comm.Send_init(_message(here), peer), self.comm.Recv_init(_message(there), peer)
        order = (send, receive) if self.comm.rank == a else (receive, send)
        spans = np.empty(WARM + TRIPS)
        for place in range(len(spans)):
            begin = time.perf_counter()
            for request in order:
                request.Start()
                until(request.Test, self.idle)
            spans[place] = time.perf_counter() - begin
        send.Free()
        receive.Free()
        return float(np.median(spans[WARM:])) / 2 if self.comm.rank == a else 0.0

    def _pour(self, a: int, b: int, here: Any, there: Any, repeats: int) -> float:
        """Median seconds from the start of a message each way to the end of the one that comes here."""
        peer, spans = a + b - self.comm.rank, np.empty(WARM + repeats)
        for place in range(len(spans)):
            self._both_ways(peer, np.zeros(1, np.uint16), np.zeros(1, np.uint16))  # both are there
            spans[place] = self._both_ways(peer, here, there)
        return float(np.median(spans[WARM:]))

    def _both_ways(self, peer: int, here: Any, there: Any) -> float:
        """Sends one message, waits for another; seconds until the latter is there."""
        begin = time.perf_counter()
        receive, send = self.comm.Irecv(_message(there), peer), self.comm.Isend(_message(here), peer)
        until(receive.Test, self.idle)
        seconds = time.perf_counter() - begin
        until(send.Test, self.idle)
        return seconds

    def _room(self, size: int) -> Any:
        """uint16 `[size]`, every page of it there."""
        found = array.empty((size,), self.memory)
        found[:] = 1
        array.settle(found)
        return found


def _message(values: Any) -> list:
    return [values, MPI.UINT16_T]
