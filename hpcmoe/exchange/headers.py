"""The counts that go before the rows."""

import numpy as np

from hpcmoe.exchange.interface import until
from hpcmoe.exchange.requests import make_even
from hpcmoe.launch import Idle
from hpcmoe.types import Extent, Layout, dense


class Headers:
    """Tells each peer how many rows it is about to get, and all how much travels: a persistent all-to-all.

    Five int64 a peer: rows for it; then for the rows that leave and for the answers that come home, the most for one
    rank and the sum for all others. Where rows travel by way of relays, three more: rows that it gets in the end, and
    the most of those and of answers for one rank. Collective over `comm`, which is duplicated: two exchanges in flight
    on one communicator must start in the same order everywhere.
    """

    stage = "exchange"

    def __init__(self, comm, idle: Idle, relayed: bool = False) -> None:
        self._comm = comm.Dup()
        self._idle = idle
        self._mine, self._theirs = np.zeros((2, comm.size, 8 if relayed else 5), np.int64)
        self._request = make_even(self._comm, self._mine, self._theirs)

    def start(self, counts: np.ndarray, home_counts: np.ndarray,
              behind: tuple[np.ndarray, np.ndarray] | None = None) -> None:
        """`counts` `[R]`: rows for each peer; `home_counts` `[R]`: answers that will come from each; `behind` as in
        `SendPlan`, where rows travel by way of relays."""
        me = self._comm.rank
        self._mine[:, 0] = counts
        self._mine[:, 1:5] = (counts.max(), counts.sum() - counts[me],
                              home_counts.max(), home_counts.sum() - home_counts[me])
        if behind:
            self._mine[:, 5] = behind[0]
            self._mine[:, 6:] = behind[0].max(), behind[1].max()
        self._request.Start()

    def test(self) -> bool:
        """See `interface.Flight`."""
        return self._request.Test()

    def wait(self) -> None:
        """See `interface.Flight`."""
        until(self.test, self._idle)
        self.incoming: Layout = dense(self._theirs[:, 0].copy(), self._comm.rank)
        """of the rows that the peers are about to send"""
        largest, total, largest_home, total_home, *behind = self._theirs[:, 1:].max(axis=0).tolist()
        self.extent = Extent(largest, total)
        """of the rows that leave; the same on all ranks"""
        self.extent_home = Extent(largest_home, total_home)
        """of the answers; the same on all ranks"""
        if behind:
            self.reach = self._theirs[:, 5].copy()
            """`[R]`: rows of each source that come here in the end"""
            self.most: tuple[int, int] = behind[1], behind[2]
            """rows of one source for one rank, and answers: the most that there are; the same on all ranks"""

    def free(self) -> None:
        """Collective."""
        self._request.Free()
        self._comm.Free()
