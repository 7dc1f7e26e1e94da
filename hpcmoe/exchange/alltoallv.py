"""Rows by exact counts, through `MPI_Ialltoallv`: for large micro-batches."""

import numpy as np
from mpi4py import MPI

from hpcmoe.exchange.buffer import Buffer, copy_own
from hpcmoe.exchange.interface import until
from hpcmoe.launch import Idle

LARGEST = 2**31 - 1
"""MPI counts and displacements are 32-bit integers."""


class Alltoallv:
    """An `interface.Rows`. Collective over `comm`, which is duplicated."""

    stage = "exchange"

    def __init__(self, comm, idle: Idle) -> None:
        self._comm = comm.Dup()
        self._idle = idle
        self._out, self._in = Buffer(), Buffer()
        self._request = MPI.REQUEST_NULL
        self.arrived = self._in.take(0, 1)

    def buffer(self, rows: int, units: int) -> np.ndarray:
        """See `interface.Rows`."""
        return self._out.take(rows, units)

    def start(self, rows: np.ndarray, counts: np.ndarray, incoming: np.ndarray, largest: int) -> None:
        """See `interface.Rows`."""
        units = rows.shape[1]
        self.arrived = self._in.take(int(incoming.sum()), units)
        assert max(rows.size, self.arrived.size) <= LARGEST, "more than 2**31 - 1 values in one exchange"
        copy_own(self._comm.rank, rows, counts, self.arrived, incoming)
        out, out_at = _spec(counts, units)
        into, into_at = _spec(incoming, units)
        out[self._comm.rank] = into[self._comm.rank] = 0
        self._request = self._comm.Ialltoallv([rows, (out, out_at), MPI.UINT16_T],
                                              [self.arrived, (into, into_at), MPI.UINT16_T])

    def test(self) -> bool:
        """See `interface.Flight`."""
        return self._request.Test()

    def wait(self) -> None:
        """See `interface.Flight`."""
        until(self.test, self._idle)

    def free(self) -> None:
        """See `interface.Rows`."""
        self._comm.Free()


def _spec(counts: np.ndarray, units: int) -> tuple[np.ndarray, np.ndarray]:
    values = counts * units
    return values, np.cumsum(values) - values
