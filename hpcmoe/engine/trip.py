"""An exchange on its way, and when it began and ended."""

import time
from collections.abc import Callable, Sequence

import numpy as np

from hpcmoe.exchange.interface import Flight


class Trip:
    """One direction of one micro-batch in one layer, from the moment it is made to the last row. A `Flight`.

    Its end is when the first `test` sees it, or when `wait` returns.
    """

    stage = "exchange"

    def __init__(self, flight: Flight, kind: str, layer: int, micro_batch: int,
                 landed: Callable[["Trip"], None], now: Callable[[], float] | None = None) -> None:
        """`flight` may start later; kind is "dispatch", "return", "gather" or "bring"; `landed` is called once, in the
        end; `now` tells the time."""
        self.kind, self.layer, self.micro_batch = kind, layer, micro_batch
        self._flight, self._landed, self._now = flight, landed, now or time.perf_counter
        self.begin = self._now()
        self.end: float | None = None

    def test(self) -> bool:
        """See `Flight`."""
        if self.end is None and self._flight.test():
            self._land()
        return self.end is not None

    def wait(self) -> None:
        """See `Flight`."""
        self._flight.wait()
        if self.end is None:
            self._land()

    def _land(self) -> None:
        self.end = self._now()
        self._landed(self)


def classes(nodes: Sequence[int], rank: int) -> np.ndarray:
    """`[len(CLASSES), R]` int64: 1 where a row that `rank` sends to each rank counts; `nodes` `[R]` as in `World`."""
    there = np.asarray(nodes)
    own, near = np.arange(len(there)) == rank, there == there[rank]
    return np.array([own, near & ~own, ~near], np.int64)
