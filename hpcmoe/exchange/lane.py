"""The exchanges that one micro-batch uses, layer after layer."""

from dataclasses import dataclass, replace

from hpcmoe.exchange.alltoallv import Alltoallv
from hpcmoe.exchange.headers import Headers
from hpcmoe.exchange.interface import Hop, Rows
from hpcmoe.exchange.persistent import Persistent, always
from hpcmoe.exchange.relayed import Relayed
from hpcmoe.exchange.staged import Staged
from hpcmoe.exchange.tallies import Tallies
from hpcmoe.launch import Idle
from hpcmoe.slots import Placements
from hpcmoe.types import Hops, Speeds


@dataclass(frozen=True)
class Lane:
    """Counts and rows to the experts, and answers home."""

    headers: Headers
    dispatch: Rows
    home: Rows
    tallies: Tallies | None = None
    """before the counts, where the way is exact"""
    by: Relayed | None = None
    """where rows go in two hops"""

    def tallied(self, placements: Placements) -> frozenset[int]:
        """The layers in which rows are tallied before they are spread over replicas."""
        return frozenset(n for n, placement in enumerate(placements) if self.tallies and placement.replicated)

    def free(self) -> None:
        """Collective."""
        for exchange in (self.headers, self.dispatch, self.home, self.tallies):
            if exchange:
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
    exact: bool = False
    """whether replicas get exactly equal parts of all ranks' rows"""
    by: Relayed | None = None
    """where rows may go in two hops; they then travel so between nodes"""
    hops: Hops | None = None
    """by which rows go in two hops or flat; the same on all ranks. Without them all go in two"""


def open_lanes(comm, idle: Idle, way: Way, count: int, experts: int = 0) -> list[Lane]:
    """Exchanges of `count` micro-batches, as `way` says; `experts` is E, where it is exact. Collective over `comm`."""
    line: list[Staged] = []
    return [Lane(Headers(comm, idle), open_rows(comm, idle, way, line), open_rows(comm, idle, way, line),
                 Tallies(comm, idle, experts) if way.exact else None) for _ in range(count)]


def open_rows(comm, idle: Idle, way: Way, line: list[Staged] | None = None) -> Hop:
    """One of the two directions; `line` as in `Staged`. Collective over `comm`."""
    if way.transport == "staged":
        host = replace(way, transport="device", memory="pinned" if way.memory == "device" else "host")
        return Staged(comm, idle, lambda: open_rows(comm, idle, host), way.memory, [] if line is None else line)
    if way.mode == "alltoallv" or (way.mode == "auto" and way.speeds is None):
        return Alltoallv(comm, idle, way.memory)
    pays = way.speeds.persistent_pays if way.mode == "auto" and way.speeds else always
    return Persistent(comm, idle, pays, way.memory)
