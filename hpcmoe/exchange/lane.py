"""The three exchanges that one micro-batch uses, layer after layer."""

from dataclasses import dataclass

from hpcmoe.exchange.alltoallv import Alltoallv
from hpcmoe.exchange.headers import Headers
from hpcmoe.exchange.interface import Rows
from hpcmoe.exchange.persistent import Persistent
from hpcmoe.launch import Idle

MODES: dict[str, type[Alltoallv] | type[Persistent]] = {
    "auto": Alltoallv, "alltoallv": Alltoallv, "persistent": Persistent}


@dataclass(frozen=True)
class Lane:
    """Counts and rows to the experts, and answers home."""

    headers: Headers
    dispatch: Rows
    home: Rows

    def free(self) -> None:
        """Collective."""
        for exchange in (self.headers, self.dispatch, self.home):
            exchange.free()


def open_lane(comm, idle: Idle, mode: str = "auto") -> Lane:
    """Exchanges of `mode` ("auto", "alltoallv", "persistent"). Collective over `comm`."""
    return Lane(Headers(comm, idle), MODES[mode](comm, idle), MODES[mode](comm, idle))
