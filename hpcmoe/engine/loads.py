"""The rows of all ranks for each expert, added up while the ranks go on."""

from typing import Any

import numpy as np
from mpi4py import MPI

from hpcmoe.exchange.interface import until
from hpcmoe.exchange.watch import Unwatched, Watch


class Loads:
    """One sum at a time. Collective over `comm`, which is duplicated."""

    def __init__(self, comm, watch: Watch | Unwatched, shape: tuple[int, int]) -> None:
        """shape is (L, E)."""
        self._comm, self._watch = comm.Dup(), watch
        self._all = np.zeros(shape, np.int64)
        self._request: Any = None

    @property
    def started(self) -> bool:
        """Whether a sum is under way."""
        return self._request is not None

    def start(self, mine: np.ndarray) -> None:
        """mine `[L, E]` int64: this rank's rows."""
        self._all[...] = mine
        self._request = self._comm.Iallreduce(MPI.IN_PLACE, self._all)

    def wait(self) -> np.ndarray:
        """`[L, E]` int64: those of all ranks, the same on each."""
        self._watch.mark("balance")
        until(self._request.Test, self._watch.idle)
        self._request = None
        return self._all.copy()

    def free(self) -> None:
        """Collective."""
        if self.started:
            self.wait()
        self._comm.Free()
