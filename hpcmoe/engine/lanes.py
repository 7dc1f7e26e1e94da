"""The lanes of a step's micro-batches: flat ones, ones in two hops, or both, of which each step takes one."""

from collections.abc import Callable

import numpy as np

from hpcmoe.exchange.interface import Rows
from hpcmoe.exchange.lane import Lane, Way, open_lanes
from hpcmoe.exchange.twohop import TwoHops, open_twohop
from hpcmoe.launch import Idle
from hpcmoe.slots import Placements


class Lanes:
    """Collective over `comm`."""

    def __init__(self, comm, idle: Idle, way: Way, count: int, experts: int) -> None:
        """For `count` micro-batches; `experts` is E."""
        self._hops = way.hops
        self._far = open_twohop(comm, idle, way, way.by, count, experts) if way.by else []
        self._flat = open_lanes(comm, idle, way, count, experts) if way.hops or not way.by else []
        self._taken = self._flat or self._far

    def go(self, rows: int) -> None:
        """See `layer.Segments`; the same on all ranks."""
        if self._hops:
            self._taken = self._far if self._hops.pays(rows) else self._flat

    def __getitem__(self, number: int) -> Lane:
        return self._taken[number]

    def tallied(self, placements: Placements) -> frozenset[int]:
        """See `Lane`."""
        return self._taken[0].tallied(placements)

    def free(self) -> None:
        """Collective."""
        for lane in self._far + self._flat:
            lane.free()


def sent_by(rows: Rows, sent: np.ndarray) -> Callable[[], np.ndarray]:
    """The bytes that a rank sends in an exchange, for `Clock.depart`: `sent`, or what both hops of two add up to."""
    return (lambda: rows.sent) if isinstance(rows, TwoHops) else (lambda: sent)
