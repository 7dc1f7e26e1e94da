"""Memory for rows, and their type in MPI."""

import numpy as np
from mpi4py import MPI

from hpcmoe import array
from hpcmoe.types import Layout


class Buffer:
    """Rows of any number, in memory that grows by doubling and is kept."""

    def __init__(self, memory: str = "host") -> None:
        """`memory` as in `array.MEMORY`."""
        self._where, self._memory = memory, array.empty((0,), memory)

    def take(self, rows: int, units: int) -> np.ndarray:
        """`[rows, units]` uint16. What was there before is lost."""
        size = rows * units
        if size > len(self._memory):
            self._memory = array.empty((max(size, 2 * len(self._memory)),), self._where)
        return self._memory[:size].reshape(rows, units)


class RowTypes:
    """A row of so many uint16 as one MPI datatype: counts are then rows, and cost a start no arithmetic."""

    def __init__(self) -> None:
        self._made: dict[int, MPI.Datatype] = {}

    def __call__(self, units: int) -> MPI.Datatype:
        """The type of rows of `units` values."""
        if units not in self._made:
            self._made[units] = MPI.UINT16_T.Create_contiguous(units).Commit()
        return self._made[units]

    def free(self) -> None:
        """Local."""
        for made in self._made.values():
            made.Free()


def copy_own(rows: np.ndarray, out: Layout, arrived: np.ndarray, into: Layout) -> None:
    """A rank's own rows never enter MPI: from their block among `rows` to that among those that arrive."""
    if out.own.stop > out.own.start:
        arrived[into.own] = rows[out.own]
