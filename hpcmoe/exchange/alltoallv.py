"""Rows by exact counts, through `MPI_Ialltoallv`: for large micro-batches."""

import numpy as np
from mpi4py import MPI

from hpcmoe.exchange.buffer import Buffer, RowTypes, copy_own
from hpcmoe.exchange.interface import until
from hpcmoe.launch import Idle
from hpcmoe.types import Extent, Layout, dense


class Alltoallv:
    """An `interface.Rows`. Collective over `comm`, which is duplicated."""

    stage = "exchange"
    mode = "alltoallv"

    def __init__(self, comm, idle: Idle, memory: str = "host") -> None:
        self._comm = comm.Dup()
        self._me, self._idle = comm.rank, idle
        self._out, self._in, self._type = Buffer(memory), Buffer(memory), RowTypes()
        self._request = MPI.REQUEST_NULL

    def room(self, counts: np.ndarray, units: int) -> tuple[np.ndarray, Layout]:
        """See `interface.Rows`."""
        layout = dense(counts, self._me)
        return self.take(self._out.take(layout.rows, units), layout)

    def take(self, rows: np.ndarray, layout: Layout) -> tuple[np.ndarray, Layout]:
        """The next start sends these rows, from where they are."""
        self._rows, self._layout = rows, layout
        return rows, layout

    def ahead(self, most: int, units: int) -> np.ndarray:
        """See `interface.Rows`."""
        return self._out.take(most, units)

    def prepare(self, extent: Extent, units: int) -> None:
        """See `interface.Hop`: it needs nothing."""

    def start(self, incoming: Layout, extent: Extent) -> None:
        """See `interface.Rows`."""
        rows, out = self._rows, self._layout
        units = rows.shape[1]
        self.arrived, self.landing = self._in.take(incoming.rows, units), incoming
        kind = self._type(units)
        copy_own(rows, out, self.arrived, incoming)
        self._request = self._comm.Ialltoallv([rows, out.travels, kind], [self.arrived, incoming.travels, kind])

    def test(self) -> bool:
        """See `interface.Flight`."""
        return self._request.Test()

    def wait(self) -> None:
        """See `interface.Flight`."""
        until(self._request.Test, self._idle)

    def free(self) -> None:
        """See `interface.Rows`."""
        self._type.free()
        self._comm.Free()
