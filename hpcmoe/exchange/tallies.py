"""How many rows every rank has for each expert, where replicas are to get exactly equal parts of them."""

import numpy as np

from hpcmoe.exchange.interface import until
from hpcmoe.exchange.requests import make_gather
from hpcmoe.launch import Idle


class Tallies:
    """A persistent all-gather. A `Flight`. Collective over `comm`, which is duplicated."""

    stage = "exchange"

    def __init__(self, comm, idle: Idle, experts: int) -> None:
        self._comm, self._idle = comm.Dup(), idle
        self._mine, self.all = np.zeros(experts, np.int64), np.zeros((comm.size, experts), np.int64)
        """`[R, E]` int64: rows of each rank for each expert, valid behind `wait`"""
        self._request = make_gather(self._comm, self._mine, self.all)

    def start(self, counts: np.ndarray) -> None:
        """counts `[E]`: this rank's rows."""
        self._mine[:] = counts
        self._request.Start()

    def test(self) -> bool:
        """See `interface.Flight`."""
        return self._request.Test()

    def wait(self) -> None:
        """See `interface.Flight`."""
        until(self._request.Test, self._idle)

    def free(self) -> None:
        """Collective."""
        self._request.Free()
        self._comm.Free()
