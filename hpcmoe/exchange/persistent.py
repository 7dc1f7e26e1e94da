"""Rows by persistent requests of a fixed capacity: for decode, where starting a request costs more than its bytes.

The counts of a persistent request are frozen when it is made, so there is a ladder of them, for 1, 2, 4, … rows a
peer. The rung is picked by the largest count of all ranks, so nothing is ever dropped; what a peer does not fill
travels as padding. Rows are packed into the rung that the last exchange had, before the headers tell which it must be:
where they outgrew it, or where padding does not pay, exact counts take them as they lie.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from hpcmoe import array
from hpcmoe.exchange.alltoallv import Alltoallv
from hpcmoe.exchange.buffer import Buffer, RowTypes
from hpcmoe.exchange.interface import MOST, until
from hpcmoe.exchange.requests import Request, make_request
from hpcmoe.launch import Idle
from hpcmoe.types import Extent, Layout, blocks, dense

Pays = Callable[[int, float], bool]
"""Whether a rung pays: (bytes to each peer with padding, without) -> bool. The same answer on all ranks."""


def always(padded: int, exact: float) -> bool:
    """The `Pays` of `exchange.mode = "persistent"`: as far as the memory for rungs goes."""
    return True


MEMORY = 16
"""Exchanges whose largest rung the next one is packed for: a rung that is a little too large costs less than none."""
SLACK = 4
"""How many times as large a rung may be as the one that fits."""


@dataclass(frozen=True)
class Rung:
    """A persistent request with its buffers."""

    out: np.ndarray
    """`[R * capacity, units]` uint16"""
    into: np.ndarray
    """`[R * capacity, units]` uint16"""
    request: Request


class Persistent:
    """An `interface.Rows`. Collective over `comm`, which is duplicated; rungs are made when first needed."""

    stage = "exchange"

    def __init__(self, comm, idle: Idle, pays: Pays = always, memory: str = "host") -> None:
        self._comm = comm.Dup()
        self._size, self._me, self._idle, self._pays = comm.size, comm.rank, idle, pays
        self._exact = Alltoallv(comm, idle, memory)
        self._memory, self._dense, self._type = memory, Buffer(memory), RowTypes()
        self._rungs: dict[tuple[int, int], Rung] = {}
        self._rung: Rung | None = None
        self._recent: deque[int] = deque([0], MEMORY)
        """capacities that the last exchanges asked for, 0 where none pays; the same on all ranks"""

    @property
    def mode(self) -> str:
        """See `interface.Rows`."""
        return "persistent" if self._rung else self._exact.mode

    def room(self, counts: np.ndarray, units: int) -> tuple[np.ndarray, Layout]:
        """See `interface.Rows`."""
        self._capacity, me = max(self._recent), self._me
        self._packed = self._rungs.get((self._capacity, units))
        if self._packed and counts.max() <= self._capacity:
            self._rows, self._out = self._packed.out, blocks(counts, me, self._capacity)
        else:
            self._out = dense(counts, me)
            self._rows = self._dense.take(self._out.rows, units)
        return self._rows, self._out

    def ahead(self, most: int, units: int) -> None:
        """See `interface.Rows`: which rung fits is for the counts to say."""

    def start(self, incoming: Layout, extent: Extent) -> None:
        """See `interface.Rows`."""
        capacity, wanted, units = self._capacity, _rung(extent), self._rows.shape[1]
        fits = wanted <= capacity <= SLACK * wanted and self._affordable(capacity, units, extent)
        self._rung, self._incoming = self._packed if fits else None, incoming
        if self._rung:
            self._rung.request.Start()
            own = self._out.own
            if own.stop > own.start:
                self._rung.into[own] = self._rung.out[own]
        else:
            self._exact.take(self._rows, self._out)
            self._exact.start(incoming, extent)
        if wanted != capacity or not self._packed:
            self._climb(wanted if self._affordable(wanted, units, extent) else 0, units, extent.late)
        else:
            self._recent.append(wanted if fits else 0)

    def prepare(self, extent: Extent, units: int) -> None:
        """See `interface.Hop`."""
        wanted = _rung(extent)
        self._climb(wanted if self._affordable(wanted, units, extent) else 0, units, late=False)

    def _affordable(self, capacity: int, units: int, extent: Extent) -> bool:
        """The same on all ranks."""
        size = 2 * units
        return (self._size * capacity * size <= MOST
                and self._pays(capacity * size, extent.total * size / max(1, self._size - 1)))

    def _climb(self, wanted: int, units: int, late: bool) -> None:
        """The next exchange is packed for the largest rung that the last ones asked for, not much above this one's.

        All ranks come here at once, for a rung that is new is made; not for a late exchange, see `Extent`.
        """
        if max(self._recent) > SLACK * max(wanted, 1):
            self._recent.clear()
        self._recent.append(wanted)
        largest = max(self._recent)
        if largest and not late and (largest, units) not in self._rungs:
            self._rungs[largest, units] = self._make(largest, units)

    def _make(self, capacity: int, units: int) -> Rung:
        """Collective."""
        R = self._size
        out, into = both = array.empty((2, R * capacity, units), self._memory)
        both[...] = 0
        array.settle(both)
        full = blocks(np.full(R, capacity), self._me, capacity)
        return Rung(out, into, make_request(self._comm, out, into, full, self._type(units)))

    def test(self) -> bool:
        """See `interface.Flight`."""
        return self._rung.request.Test() if self._rung else self._exact.test()

    def wait(self) -> None:
        """See `interface.Flight`."""
        until(self._rung.request.Test if self._rung else self._exact.test, self._idle)

    @property
    def arrived(self) -> np.ndarray:
        """See `interface.Rows`."""
        return self._rung.into if self._rung else self._exact.arrived

    @property
    def landing(self) -> Layout:
        """See `interface.Rows`."""
        return blocks(self._incoming.counts, self._me, self._capacity) if self._rung else self._exact.landing

    def free(self) -> None:
        """See `interface.Rows`."""
        for rung in self._rungs.values():
            rung.request.Free()
        self._exact.free()
        self._type.free()
        self._comm.Free()


def _rung(extent: Extent) -> int:
    """The capacity that fits."""
    return 1 << max(extent.largest - 1, 0).bit_length()
