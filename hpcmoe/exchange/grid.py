"""Ranks on nodes, and by way of whom their rows travel in two hops.

Rows of a rank for another node go to its relay there, which hands them out inside the node; answers come back the same
way. The relay of a source is the rank with the same place in its node, or, where nodes differ in size, with that place
modulo the node's size. For its own node a source is its own relay.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from hpcmoe.slots import members, places
from hpcmoe.types import Layout, dense, placed


@dataclass(frozen=True)
class Grid:
    """The same on all ranks."""

    node: np.ndarray
    """`[R]` int64, numbered from 0"""
    place: np.ndarray
    """`[R]` int64: the number of each rank among those of its node, ascending"""
    relay: np.ndarray
    """`[R, N]` int64: the relay of each source in each node"""
    rail: np.ndarray
    """`[R]` int64: the same for ranks that are relays of each other, also by way of third ones; where nodes have the
    same size, their place"""

    @property
    def nodes(self) -> int:
        return self.relay.shape[1]

    @cached_property
    def crowd(self) -> int:
        """Sources of one relay at most."""
        return max(int(np.unique(column, return_counts=True)[1].max()) for column in self.relay.T)

    @cached_property
    def room(self) -> int:
        """Slots of a rank at most, so that an int16 tells which slot of which rank of a node."""
        return ((1 << 15) - 1) // (int(self.place.max()) + 1)


def grid(nodes: Sequence[int]) -> Grid:
    """`nodes` `[R]` as in `launch.World`."""
    node = np.asarray(nodes, np.int64)
    place = places(node)
    relay = np.stack([ranks[place % len(ranks)] for ranks in members(node)], axis=1)
    return Grid(node, place, relay, _connected(relay))


def _connected(relay: np.ndarray) -> np.ndarray:
    """`[R]`: the lowest rank that each is connected with; relay `[R, N]`."""
    lowest, before = np.arange(len(relay)), None
    while before is None or (lowest != before).any():
        before = lowest.copy()
        np.minimum.at(lowest, relay, lowest[:, None])
        lowest = np.minimum(lowest, lowest[relay].min(axis=1))
    return np.unique(lowest, return_inverse=True)[1]


@dataclass(frozen=True)
class Seat:
    """The grid as rank `me` sees it."""

    grid: Grid
    me: int

    @cached_property
    def rail(self) -> np.ndarray:
        """The ranks of its rail, ascending."""
        return np.flatnonzero(self.grid.rail == self.grid.rail[self.me])

    @cached_property
    def at(self) -> int:
        """Its own number among those."""
        return int(np.searchsorted(self.rail, self.me))

    @cached_property
    def members(self) -> int:
        """Ranks of its node."""
        return int((self.grid.node == self.grid.node[self.me]).sum())

    @property
    def place(self) -> int:
        """Its own number among those."""
        return int(self.grid.place[self.me])

    @cached_property
    def through(self) -> np.ndarray:
        """`[R]`: which rank of its node, by place, hands out the rows of each source."""
        return self.grid.place[self.grid.relay[:, self.grid.node[self.me]]]

    @cached_property
    def woven(self) -> np.ndarray:
        """`[R]`: the sources in the order of their relays."""
        return np.argsort(self.through, kind="stable")

    def by_relay(self, counts: np.ndarray) -> np.ndarray:
        """`[members]` int64: the sum over the sources of each relay; counts `[R]` integers by source."""
        return np.bincount(self.through, counts, self.members).astype(np.int64)

    def weave(self, counts: np.ndarray) -> Layout:
        """Rows by source, where those of each relay follow each other without gaps; counts `[R]` integers by source."""
        ends, first = np.cumsum(counts[self.woven]), np.empty(len(counts), np.int64)
        first[self.woven] = ends - counts[self.woven]
        return placed(counts, self.me, first, int(ends[-1]), int(ends[-1]), straight=self.members == 1)

    def along_rail(self, counts: np.ndarray) -> Layout:
        """Blocks without gaps, of the ranks of its rail; counts `[R]`, none of others."""
        return dense(counts[self.rail], self.at)

    def seen_by_all(self, layout: Layout) -> Layout:
        """The same rows by rank, empty for those off its rail; `layout` is of the ranks of its rail."""
        counts, first = np.zeros((2, len(self.grid.node)), np.int64)
        counts[self.rail], first[self.rail] = layout.counts, layout.first
        return placed(counts, self.me, first, layout.rows, layout.extent)
