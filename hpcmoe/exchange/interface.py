"""What every exchange offers, and how it waits."""

from collections.abc import Callable
from typing import Protocol

import numpy as np

from hpcmoe.launch import Idle, rest
from hpcmoe.types import Extent, Layout

MOST = 1 << 25
"""Bytes of one rung's rows to all peers, above which exact counts take over."""
PIECE = 1 << 24
"""Bytes of a staged piece to all peers: fewer would cost more of the main thread than copies beside them save."""
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
    """One direction of one micro-batch, used for one layer after another. Rows are uint16 `[N, units]`.

    First `room` for the rows that leave, which its user fills; then `start`; behind `wait` those that came are in
    `arrived`, where `landing` says. One is in flight at a time.
    """

    @property
    def mode(self) -> str:
        """How the rows of the last start travel, for people."""
        ...

    def room(self, counts: np.ndarray, units: int) -> tuple[np.ndarray, Layout]:
        """Where to put `counts` `[R]` rows of the next start: a buffer `[extent, units]` uint16 and their places.

        Calls no MPI: it runs on the stream.
        """
        ...

    def ahead(self, most: int, units: int) -> np.ndarray | None:
        """The buffer that `room` is going to give for up to `most` rows, which will lie there without gaps: so they can
        be put there before the host has the counts. None where that is not known yet. Calls no MPI."""
        ...

    def start(self, incoming: Layout, extent: Extent) -> None:
        """Sends what is in the room, and expects `incoming` (a dense layout) from the peers. Collective.

        The room must stay as it is until `wait` returns.
        """
        ...

    @property
    def arrived(self) -> np.ndarray:
        """`[landing.extent, units]` uint16: the rows that arrived. Valid behind `wait`, until the next `start`."""
        ...

    @property
    def landing(self) -> Layout:
        """Where they lie: by source rank, each block in the order of its sender."""
        ...

    def free(self) -> None:
        """Collective."""
        ...


class Hop(Rows, Protocol):
    """What may also start by readiness: at another place among the exchanges of its ranks on each of them."""

    def prepare(self, extent: Extent, units: int) -> None:
        """Makes what its next start needs, which will be late (see `Extent`), before its room is taken. Collective."""
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
