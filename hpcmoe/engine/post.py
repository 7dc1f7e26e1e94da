"""Small messages between two ranks that otherwise go their own ways."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from mpi4py import MPI

from hpcmoe.errors import DeviceError


class Post:
    """Messages that leave while their sender goes on. Local."""

    def __init__(self, comm: Any, tag: int) -> None:
        self._comm, self._tag = comm, tag
        self._leaving: list[tuple[Any, np.ndarray]] = []

    def send(self, to: int, values: Sequence[int]) -> None:
        """int64 values to a rank."""
        self.gone()
        buffer = np.array(values, np.int64)
        self._leaving.append((self._comm.Isend(buffer, to, self._tag), buffer))

    def gone(self) -> bool:
        """Whether all have left."""
        self._leaving = [pair for pair in self._leaving if not pair[0].Test()]
        return not self._leaving


def receive(comm: Any, source: int, tag: int) -> tuple[int, list[int]] | None:
    """The next message that is there: its source, and its int64 values. Local."""
    status = MPI.Status()
    if not comm.Iprobe(source, tag, status):
        return None
    values = np.empty(status.Get_count(MPI.INT64_T), np.int64)
    comm.Recv(values, status.source, tag)
    return status.source, values.tolist()


class Pulse:
    """Whether another rank is still there: it is asked where it has said nothing for a while. Local."""

    def __init__(self, name: str, timeout: float, ask: Callable[[], None]) -> None:
        """`name` it as for people; it is asked after `timeout` seconds, and may take as many to answer."""
        self._name, self._timeout, self._ask = name, timeout, ask
        self.beat()

    def beat(self) -> None:
        """It said something."""
        self._last, self._asked = time.monotonic(), 0.0

    def check(self) -> None:
        """Behind a look at what it said. Raises `DeviceError` where it did not answer."""
        now = time.monotonic()
        if self._asked and now - self._asked > self._timeout:
            raise DeviceError(f"{self._name}, the first of its group, has said nothing for {now - self._last:.0f} s, "
                              "and does not answer (exchange.timeout sets the limit)")
        if not self._asked and now - self._last > self._timeout:
            self._asked = now
            self._ask()
