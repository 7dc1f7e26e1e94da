"""Messages of one size between two ranks, both ways, as fast as they go."""

import time
from collections.abc import Sequence
from typing import Any

from mpi4py import MPI

LEAST = 8
"""Messages each way, however long they take."""
DATA, END = 0, 1
"""Tags of messages."""


class Stream:
    """Sends messages to one rank for a while, and receives its own; as many are under way as there are receives.

    The last ones each way are ends, one for each receive. Use `test` until it is true.
    """

    def __init__(self, comm, peer: int, here: Any, there: Sequence[Any], seconds: float) -> None:
        """here and there: uint16 of one size; a message leaves from `here`, and they arrive in each of `there`."""
        self._comm, self._peer, self._here, self._there = comm, peer, here, there
        self._left, self._end = LEAST, time.perf_counter() + seconds
        self._status = MPI.Status()
        self.arrivals: list[float] = []
        """by `time.perf_counter`"""
        self._receives = [self._receive(into) for into in there]
        self._sends = [self._send() for _ in there]
        self._ended = [False for _ in there]

    def _receive(self, into: Any) -> MPI.Request:
        return self._comm.Irecv([into, MPI.UINT16_T], self._peer)

    def _send(self) -> MPI.Request:
        self._left -= 1
        return self._comm.Isend([self._here, MPI.UINT16_T], self._peer, DATA)

    def _send_end(self) -> MPI.Request:
        return self._comm.Isend([self._here[:1], MPI.UINT16_T], self._peer, END)

    def test(self) -> bool:
        """Moves all on, and says whether the ends have left and have come."""
        for slot, into in enumerate(self._there):
            if self._receives[slot] and self._receives[slot].Test(self._status) and self._status.tag == DATA:
                self.arrivals.append(time.perf_counter())
                self._receives[slot] = self._receive(into)
            if self._sends[slot] and self._sends[slot].Test() and not self._ended[slot]:
                self._ended[slot] = self._left <= 0 and time.perf_counter() > self._end
                self._sends[slot] = self._send_end() if self._ended[slot] else self._send()
        return not any(self._receives) and not any(self._sends)

    def rate(self) -> float:
        """Bytes/s of what came; the first third does not count, which may have met less traffic than the rest."""
        first = len(self.arrivals) // 3
        return self._here.nbytes * (len(self.arrivals) - 1 - first) / (self.arrivals[-1] - self.arrivals[first])
