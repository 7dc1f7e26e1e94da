"""What every exchange offers, and how it waits."""

from collections.abc import Callable
from typing import Any, Protocol

from hpcmoe.launch import Idle


class Flight(Protocol):
    """Something under way between ranks."""

    def test(self) -> bool:
        """Moves it on, and says whether it has arrived. Local."""
        ...

    def wait(self) -> Any:
        """Returns what arrived, once it has. Local, but the others must have started it too."""
        ...


def until(test: Callable[[], bool], idle: Idle) -> None:
    """Repeats `test` until it is true. MPI moves only while it is called."""
    while not test():
        idle()
