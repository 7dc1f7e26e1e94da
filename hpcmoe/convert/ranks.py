"""The processes that make a model file together: those of a launcher, by MPI, or this one alone, without."""

from collections.abc import Callable
from contextlib import redirect_stderr
from io import StringIO
from typing import Any, Protocol, TypeVar

import numpy as np

from hpcmoe import launch

T = TypeVar("T")

NUMBERS = 3
"""That are summed."""


class Ranks(Protocol):
    """All processes, seen from one. Every method but `sum` is collective."""

    rank: int
    size: int

    def on_root(self, work: Callable[[], T]) -> T:
        """What `work` gives on rank 0. Raises what it raised there, or `launch.Agreed` for it."""

    def together(self, work: Callable[[], T]) -> T:
        """What `work` gives on each rank. Raises what it raised, or `launch.Agreed` where it raised on any."""

    def gather(self, mine: T) -> list[T]:
        """What each rank has."""

    def sum(self, *mine: int) -> tuple[int, ...]:
        """`NUMBERS` of them, added up over the ranks, as they were the last time that all ranks had called this: so
        all see the same sums, one after another. Returns at once."""


class Alone:
    """See `Ranks`."""

    rank, size = 0, 1

    def on_root(self, work: Callable[[], T]) -> T:
        """See `Ranks`."""
        return work()

    def together(self, work: Callable[[], T]) -> T:
        """See `Ranks`."""
        return work()

    def gather(self, mine: T) -> list[T]:
        """See `Ranks`."""
        return [mine]

    def sum(self, *mine: int) -> tuple[int, ...]:
        """See `Ranks`."""
        return mine


class Launched:
    """See `Ranks`."""

    def __init__(self, world: launch.World) -> None:
        self.rank, self.size = world.rank, world.size
        self._world = world
        self._request: Any = None
        self._mine, self._all = np.zeros(NUMBERS, np.int64), np.zeros(NUMBERS, np.int64)
        self._latest = (0,) * NUMBERS

    def on_root(self, work: Callable[[], T]) -> T:
        """See `Ranks`."""
        return launch.on_root(self._world, work)

    def together(self, work: Callable[[], T]) -> T:
        """See `Ranks`."""
        return launch.together(self._world, work)

    def gather(self, mine: T) -> list[T]:
        """See `Ranks`."""
        return self._world.comm.allgather(mine)

    def sum(self, *mine: int) -> tuple[int, ...]:
        """See `Ranks`. Who has seen the last sums that matter must not call it again."""
        if self._request is None:
            self._mine[:] = mine
            self._request = self._world.comm.Iallreduce(self._mine, self._all)
        if self._request.Test():
            self._latest, self._request = tuple(self._all.tolist()), None
        return self._latest


def hushed(work: Callable[[], T]) -> T:
    """What `work` gives; what it says on stderr rank 0 says, too."""
    with redirect_stderr(StringIO()):
        return work()
