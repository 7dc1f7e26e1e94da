"""The three exchanges that one micro-batch uses, layer after layer."""

from dataclasses import dataclass, replace

from hpcmoe.exchange.alltoallv import Alltoallv
from hpcmoe.exchange.headers import Headers
from hpcmoe.exchange.interface import Hop, Rows
from hpcmoe.exchange.persistent import Persistent, always
from hpcmoe.exchange.staged import Staged
from hpcmoe.launch import Idle
from hpcmoe.types import Speeds


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


@dataclass(frozen=True)
class Way:
    """How rows travel."""

    mode: str = "alltoallv"
    """one of `types.MODES`, or "auto", which does as `speeds` says, and takes exact counts without them"""
    transport: str = "device"
    """one of `types.TRANSPORTS`"""
    speeds: Speeds | None = None
    """the same on all ranks"""
    memory: str = "host"
    """where rows are computed: one of `array.MEMORY`"""


def open_lanes(comm, idle: Idle, way: Way, count: int) -> list[Lane]:
    """Exchanges of `count` micro-batches, as `way` says. Collective over `comm`."""
    line: list[Staged] = []
    return [Lane(Headers(comm, idle), open_rows(comm, idle, way, line), open_rows(comm, idle, way, line))
            for _ in range(count)]


def open_rows(comm, idle: Idle, way: Way, line: list[Staged] | None = None) -> Hop:
    """One of the two directions; `line` as in `Staged`. Collective over `comm`."""
    if way.transport == "staged":
        host = replace(way, transport="device", memory="pinned" if way.memory == "device" else "host")
        return Staged(comm, idle, lambda: open_rows(comm, idle, host), way.memory, [] if line is None else line)
    if way.mode == "alltoallv" or (way.mode == "auto" and way.speeds is None):
        return Alltoallv(comm, idle, way.memory)
    pays = way.speeds.persistent_pays if way.mode == "auto" and way.speeds else always
    return Persistent(comm, idle, pays, way.memory)
