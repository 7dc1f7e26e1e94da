"""Rows by exact counts, through `MPI_Ialltoallv`."""

import numpy as np
from mpi4py import MPI

from hpcmoe.exchange.interface import until
from hpcmoe.launch import Idle

LARGEST = 2**31 - 1
"""MPI counts and displacements are 32-bit integers."""


class Buffer:
    """Rows of any number, in memory that grows by doubling and is kept."""

    def __init__(self) -> None:
        self._memory = np.empty(0, np.uint16)

    def take(self, rows: int, units: int) -> np.ndarray:
        """`[rows, units]` uint16. What was there before is lost."""
        if rows * units > len(self._memory):
            self._memory = np.empty(max(rows * units, 2 * len(self._memory)), np.uint16)
        return self._memory[:rows * units].reshape(rows, units)


class Alltoallv:
    """One direction of one micro-batch, used for one layer after another. Collective over `comm`.

    Rows are uint16 `[N, units]`, ordered by rank. A rank's own rows never enter MPI: they are copied.
    The array that `wait` returns is valid until the next `start`.
    """

    def __init__(self, comm, idle: Idle) -> None:
        self._comm = comm.Dup()
        self._idle = idle
        self._out, self._in = Buffer(), Buffer()
        self._request = MPI.REQUEST_NULL
        self._arriving = np.empty((0, 0), np.uint16)

    def buffer(self, rows: int, units: int) -> np.ndarray:
        """`[rows, units]` uint16 to put the rows of the next `start` in."""
        return self._out.take(rows, units)

    def start(self, rows: np.ndarray, counts: np.ndarray, incoming: np.ndarray) -> None:
        """Sends `counts` `[R]` of `rows` to the peers and expects `incoming` `[R]` from them.

        `rows` must stay as they are until `wait` returns.
        """
        units = rows.shape[1]
        self._arriving = self._in.take(int(incoming.sum()), units)
        assert max(rows.size, self._arriving.size) <= LARGEST, "more than 2**31 - 1 values in one exchange"
        out, out_at = _spec(counts, units)
        into, into_at = _spec(incoming, units)
        self._copy_own(rows, counts, incoming)
        out[self._comm.rank] = into[self._comm.rank] = 0
        self._request = self._comm.Ialltoallv([rows, (out, out_at), MPI.UINT16_T],
                                              [self._arriving, (into, into_at), MPI.UINT16_T])

    def _copy_own(self, rows: np.ndarray, counts: np.ndarray, incoming: np.ndarray) -> None:
        me = self._comm.rank
        first, into = int(counts[:me].sum()), int(incoming[:me].sum())
        self._arriving[into:into + int(incoming[me])] = rows[first:first + int(counts[me])]

    def test(self) -> bool:
        """See `interface.Flight`."""
        return self._request.Test()

    def wait(self) -> np.ndarray:
        """`[M, units]` uint16: the rows that arrived, by source rank, each in the order of its sender."""
        until(self.test, self._idle)
        return self._arriving

    def free(self) -> None:
        """Collective."""
        self._comm.Free()


def _spec(counts: np.ndarray, units: int) -> tuple[np.ndarray, np.ndarray]:
    values = counts * units
    return values, np.cumsum(values) - values
