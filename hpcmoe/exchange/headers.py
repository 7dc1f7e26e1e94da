"""The counts that go before the rows."""

import numpy as np

from hpcmoe.exchange.interface import until
from hpcmoe.launch import Idle


class Headers:
    """Tells each peer how many rows it is about to get, and all how many any pair has: a persistent all-to-all.

    Three int64 a peer: rows for it; the most rows that this rank sends to any other; and the most answers that it
    awaits from any other. Collective over `comm`, which is duplicated: two exchanges in flight on one
    communicator must start in the same order everywhere.
    """

    stage = "exchange"

    def __init__(self, comm, idle: Idle) -> None:
        self._comm = comm.Dup()
        self._idle = idle
        self._mine, self._theirs = np.zeros((2, comm.size, 3), np.int64)
        self._request = self._comm.Alltoall_init(self._mine, self._theirs)

    def start(self, counts: np.ndarray, home_counts: np.ndarray) -> None:
        """`counts` `[R]`: rows for each peer; `home_counts` `[R]`: answers that will come from each."""
        self._mine[:, 0] = counts
        self._mine[:, 1] = self._largest(counts)
        self._mine[:, 2] = self._largest(home_counts)
        self._request.Start()

    def _largest(self, counts: np.ndarray) -> int:
        """Of those of other ranks: own rows do not travel."""
        me = self._comm.rank
        return int(max(counts[:me].max(initial=0), counts[me + 1:].max(initial=0)))

    def test(self) -> bool:
        """See `interface.Flight`."""
        return self._request.Test()

    def wait(self) -> None:
        """See `interface.Flight`."""
        until(self.test, self._idle)

    @property
    def counts(self) -> np.ndarray:
        """`[R]` int64: rows from each peer, behind `wait`."""
        return self._theirs[:, 0].copy()

    @property
    def largest(self) -> int:
        """The most rows that any rank sends to any other; the same on all ranks."""
        return int(self._theirs[:, 1].max())

    @property
    def largest_home(self) -> int:
        """The most answers that any rank sends to any other; the same on all ranks."""
        return int(self._theirs[:, 2].max())

    def free(self) -> None:
        """Collective."""
        self._request.Free()
        self._comm.Free()
