"""Rows by persistent requests of a fixed capacity: for decode, where starting a request costs more than its bytes.

The counts of a persistent request are frozen when it is made, so there is a ladder of them, for 1, 2, 4, … rows a
peer. The rung is picked by the largest count of all ranks, so nothing is ever dropped; what a peer does not fill
travels as padding. Above a limit of memory, exact counts take over.
"""

from dataclasses import dataclass

import numpy as np
from mpi4py import MPI

from hpcmoe.exchange.alltoallv import Alltoallv
from hpcmoe.exchange.buffer import Buffer, copy_own
from hpcmoe.exchange.interface import until
from hpcmoe.launch import Idle

MOST = 1 << 25
"""Bytes of one rung's rows to all peers, above which `Alltoallv` takes over."""


@dataclass(frozen=True)
class Rung:
    """A persistent request with its buffers."""

    out: np.ndarray
    """`[R, capacity, units]` uint16"""
    into: np.ndarray
    """`[R, capacity, units]` uint16"""
    request: MPI.Prequest


class Persistent:
    """An `interface.Rows`. Collective over `comm`, which is duplicated; rungs are made when first needed."""

    stage = "exchange"

    def __init__(self, comm, idle: Idle) -> None:
        self._comm = comm.Dup()
        self._idle = idle
        self._exact = Alltoallv(comm, idle)
        self._out, self._in = Buffer(), Buffer()
        self._rungs: dict[tuple[int, int], Rung] = {}
        self._rung: Rung | None = None
        self._incoming = np.zeros(comm.size, np.int64)
        self._arrived = self._in.take(0, 1)

    def buffer(self, rows: int, units: int) -> np.ndarray:
        """See `interface.Rows`."""
        return self._out.take(rows, units)

    def start(self, rows: np.ndarray, counts: np.ndarray, incoming: np.ndarray, largest: int) -> None:
        """See `interface.Rows`."""
        units = rows.shape[1]
        capacity = 1 << max(largest - 1, 0).bit_length()
        if 2 * self._comm.size * capacity * units > MOST:
            self._rung = None
            self._exact.start(rows, counts, incoming, largest)
            return
        self._rung = rung = self._climb(capacity, units)
        first = 0
        for peer, count in enumerate(counts.tolist()):
            if peer != self._comm.rank:
                rung.out[peer, :count] = rows[first:first + count]
            first += count
        self._incoming = incoming
        self._arrived = self._in.take(int(incoming.sum()), units)
        copy_own(self._comm.rank, rows, counts, self._arrived, incoming)
        rung.request.Start()

    def _climb(self, capacity: int, units: int) -> Rung:
        """The rung of `capacity` rows a peer; all ranks come to a new one at the same start."""
        if (capacity, units) not in self._rungs:
            R = self._comm.size
            out, into = np.zeros((2, R, capacity, units), np.uint16)
            values = np.full(R, capacity * units)
            values[self._comm.rank] = 0
            at = np.arange(R) * capacity * units
            request = self._comm.Alltoallv_init([out, (values, at), MPI.UINT16_T], [into, (values, at), MPI.UINT16_T])
            self._rungs[capacity, units] = Rung(out, into, request)
        return self._rungs[capacity, units]

    def test(self) -> bool:
        """See `interface.Flight`."""
        return self._rung.request.Test() if self._rung else self._exact.test()

    def wait(self) -> None:
        """See `interface.Flight`."""
        until(self.test, self._idle)
        if self._rung:
            first = 0
            for peer, count in enumerate(self._incoming.tolist()):
                if peer != self._comm.rank:
                    self._arrived[first:first + count] = self._rung.into[peer, :count]
                first += count

    @property
    def arrived(self) -> np.ndarray:
        """See `interface.Rows`."""
        return self._arrived if self._rung else self._exact.arrived

    def free(self) -> None:
        """See `interface.Rows`."""
        for rung in self._rungs.values():
            rung.request.Free()
        self._exact.free()
        self._comm.Free()
