"""Who is missing, when an exchange does not end.

Each rank notes where it is before each exchange. One that waits too long asks all others where they are, over a
communicator of its own; they answer while they wait themselves. A rank that is stopped, dead or lost does not.
"""

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from mpi4py import MPI

from hpcmoe import ulfm
from hpcmoe.errors import DeviceError
from hpcmoe.launch import Idle
from hpcmoe.types import MODES

ASK, TELL = 1, 2
PATIENCE = 5.0
"""Seconds that an answer may take."""
EVERY = 0.05
"""Seconds between two looks for questions."""
KINDS = ("start", "vote", "balance", "dispatch", "return", "meeting", "gather", "bring")
WAYS = ("", "counts", *(hops + mode + staged for hops in ("", "twohop, ") for staged in ("", ", staged")
                        for mode in MODES))
"""What of an exchange is under way: its counts, or its rows by one of the modes (`interface.Rows.mode`)."""


@dataclass(frozen=True)
class Place:
    """Where a rank is."""

    sequence: int
    """exchanges that it has begun"""
    kind: str
    layer: int
    micro_batch: int
    rows: int
    """that it sends there"""
    way: str
    """one of `WAYS`"""

    def __str__(self) -> str:
        if self.kind in ("start", "vote"):
            return f"in the {self.kind} of exchange {self.sequence}"
        return (f"in exchange {self.sequence}, the {self.kind} of layer {self.layer}, micro-batch {self.micro_batch}, "
                f"{self.rows} rows" + (f" by {self.way}" if self.way else ""))


class Watch:
    """Collective over `comm`, which is duplicated. `idle` is what `interface.until` calls between two looks."""

    def __init__(self, comm, idle: Idle, timeout: float, hosts: tuple[str, ...], whole: Any, first: int) -> None:
        """`timeout` in seconds; `hosts` `[R]`; `whole` is the communicator of all ranks, of which these may be a part,
        and `first` what their first one is called there."""
        self._whole, self._comm, self._first = whole, comm.Dup(), first
        self._rest, self._hosts = idle, hosts
        # one rank asks first; were it the one that hangs, the next does, and then all
        self._limit = timeout + min(comm.rank, 2) * (PATIENCE + 2)
        self._place = np.zeros(6, np.int64)
        self._begun = self._looked = time.monotonic()

    def mark(self, kind: str, layer: int = 0, micro_batch: int = 0, rows: int = 0) -> None:
        """An exchange begins on this rank."""
        self._place[:] = self._place[0] + 1, KINDS.index(kind), layer, micro_batch, rows, 0
        self._begun = time.monotonic()

    def by(self, way: str) -> None:
        """What of the exchange is under way now: one of `WAYS`."""
        self._place[5] = WAYS.index(way)

    def idle(self) -> None:
        """Answers questions, and asks when it has waited too long. Raises `DeviceError` with what it learned, and what
        MPI raises where a rank died (`ulfm`)."""
        self._rest()
        now = time.monotonic()
        if now - self._looked < EVERY:
            return
        self._looked = now
        if ulfm.on():
            self._whole.Iprobe()  # raises where it is revoked
        self._answer()
        if now - self._begun > self._limit:
            raise DeviceError(self._report())

    def attend(self) -> None:
        """Answers questions while the rank waits for its own arithmetic, which no exchange is charged with."""
        self._begun = time.monotonic()
        self.idle()

    def _answer(self) -> None:
        status = MPI.Status()
        while self._comm.Iprobe(MPI.ANY_SOURCE, ASK, status):
            self._comm.Recv(np.empty(0, np.int64), status.source, ASK)
            self._comm.Send(self._place, status.source, TELL)

    def _report(self) -> str:
        """Asks all ranks where they are, waits for `PATIENCE` seconds, and says who is behind or silent."""
        R, me = self._comm.size, self._comm.rank
        others = [rank for rank in range(R) if rank != me]
        requests = [self._comm.Isend(np.empty(0, np.int64), rank, ASK) for rank in others]
        places = {me: _place(self._place)}
        status, values, end = MPI.Status(), np.empty(6, np.int64), time.monotonic() + PATIENCE
        while len(places) < R and time.monotonic() < end:
            self._answer()
            MPI.Request.Testall(requests)
            if self._comm.Iprobe(MPI.ANY_SOURCE, TELL, status):
                self._comm.Recv(values, status.source, TELL)
                places[status.source] = _place(values)
            time.sleep(0.001)
        return self._words(places)

    def _words(self, places: dict[int, Place]) -> str:
        me = self._comm.rank
        silent = [rank for rank in range(self._comm.size) if rank not in places]
        newest = max(place.sequence for place in places.values())
        behind = [rank for rank, place in places.items() if place.sequence < newest]
        found = [f"rank {self._first + rank} on {self._hosts[rank]} does not answer" for rank in silent]
        if not silent:  # else those that are behind may only wait for the silent ones
            found = [f"rank {self._first + rank} on {self._hosts[rank]} is behind, {places[rank]}" for rank in behind]
        waited = time.monotonic() - self._begun
        verdict = "; ".join(found) or "all ranks answer and none is behind"
        return f"no progress for {waited:.0f} s {places[me]}: {verdict} (exchange.timeout sets the limit)"

    def free(self) -> None:
        """Collective."""
        self._answer()
        self._comm.Free()


class Unwatched:
    """The watch of tests and benchmarks: waits for ever."""

    def __init__(self, idle: Idle) -> None:
        self.idle = self.attend = idle

    def mark(self, kind: str, layer: int = 0, micro_batch: int = 0, rows: int = 0) -> None:
        """See `Watch`."""

    def by(self, way: str) -> None:
        """See `Watch`."""


def _place(values: np.ndarray) -> Place:
    sequence, kind, layer, micro_batch, rows, way = values.tolist()
    return Place(sequence, KINDS[kind], layer, micro_batch, rows, WAYS[way])
