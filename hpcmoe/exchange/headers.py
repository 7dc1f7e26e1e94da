"""The counts that go before the rows."""

import numpy as np

from hpcmoe.exchange.interface import until
from hpcmoe.launch import Idle


class Headers:
    """Tells each peer how many rows it is about to get: a persistent all-to-all of one int64 a peer.

    Collective over `comm`, which is duplicated: two exchanges in flight on one communicator must start in the
    same order everywhere.
    """

    def __init__(self, comm, idle: Idle) -> None:
        self._comm = comm.Dup()
        self._idle = idle
        self._mine, self._theirs = np.zeros((2, comm.size), np.int64)
        self._request = self._comm.Alltoall_init(self._mine, self._theirs)

    def start(self, counts: np.ndarray) -> None:
        """`counts` `[R]`: rows for each peer."""
        self._mine[:] = counts
        self._request.Start()

    def test(self) -> bool:
        """See `interface.Flight`."""
        return self._request.Test()

    def wait(self) -> np.ndarray:
        """`[R]` int64: rows from each peer."""
        until(self.test, self._idle)
        return self._theirs.copy()

    def free(self) -> None:
        """Collective."""
        self._request.Free()
        self._comm.Free()
