"""The three exchanges that one micro-batch uses, layer after layer."""

from dataclasses import dataclass

from hpcmoe.exchange.alltoallv import Alltoallv
from hpcmoe.exchange.headers import Headers
from hpcmoe.exchange.interface import Idle


@dataclass(frozen=True)
class Lane:
    """Counts and rows to the experts, and answers home."""

    headers: Headers
    dispatch: Alltoallv
    home: Alltoallv

    def free(self) -> None:
        """Collective."""
        for exchange in (self.headers, self.dispatch, self.home):
            exchange.free()


def open_lane(comm, idle: Idle) -> Lane:
    """Collective over `comm`."""
    return Lane(Headers(comm, idle), Alltoallv(comm, idle), Alltoallv(comm, idle))
