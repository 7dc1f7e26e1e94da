"""What every exchange offers, and how it waits."""

from collections.abc import Callable
from typing import Protocol

import numpy as np

from hpcmoe.launch import Idle, rest

PATIENCE = 5000
"""Looks at a request, some milliseconds of them, after which every rank rests between two."""


class Flight(Protocol):
    """Something under way: between ranks, or on a stream."""

    stage: str
    """What waiting for it counts as (`types.STAGES`); "" where its time is counted elsewhere."""

    def test(self) -> bool:
        """Moves it on, and says whether it has arrived. Local."""
        ...

    def wait(self) -> None:
        """Returns once it has arrived. Local, but the others must have started it too."""
        ...


class Rows(Flight, Protocol):
    """One direction of one micro-batch, used for one layer after another. Rows are uint16 `[N, units]`."""

    def buffer(self, rows: int, units: int) -> np.ndarray:
        """`[rows, units]` uint16 to put the rows of the next `start` in."""
        ...

    def start(self, rows: np.ndarray, counts: np.ndarray, incoming: np.ndarray, largest: int) -> None:
        """Sends `counts` `[R]` of `rows`, ordered by rank, and expects `incoming` `[R]` from the peers. Collective.

        `largest` is the largest count between two ranks, the same everywhere. `rows` must stay as they are until
        `wait` returns.
        """
        ...

    @property
    def arrived(self) -> np.ndarray:
        """`[M, units]` uint16: the rows that arrived, by source rank, each in the order of its sender.

        Valid behind `wait`, until the next `start`.
        """
        ...

    def free(self) -> None:
        """Collective."""
        ...


def until(test: Callable[[], bool], idle: Idle) -> None:
    """Repeats `test` until it is true. MPI moves only while it is called.

    After a long while without success even ranks with cores of their own rest in between: others may want the core.
    """
    looks = 0
    while not test():
        looks += 1
        idle()
        if looks > PATIENCE:
            rest()
