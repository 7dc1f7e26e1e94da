"""Who holds what, and what is known when that is decided: slots, the routing of an earlier run, the network."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np


@dataclass(frozen=True)
class Placement:
    """Who holds what in one layer: a table of S slots, ascending by rank.

    A slot holds one expert, or one of its replicas, or one shard of it. No rank holds two replicas of one expert.
    """

    ranks: int
    rank: np.ndarray
    """`[S]` int32: the rank that has the slot"""
    expert: np.ndarray
    """`[S]` int32: the expert that is in it"""

    @cached_property
    def first(self) -> np.ndarray:
        """`[R + 1]` int32: the first slot of each rank; its last entry is S."""
        return np.searchsorted(self.rank, np.arange(self.ranks + 1)).astype(np.int32)

    @cached_property
    def copies(self) -> np.ndarray:
        """`[E]` int32: how many slots hold each expert."""
        return np.bincount(self.expert).astype(np.int32)

    @cached_property
    def slots(self) -> np.ndarray:
        """`[E, C]` int32: the slots of each expert, ascending; -1 behind its last. C is the most that one has."""
        order = np.argsort(self.expert, kind="stable")
        place = np.arange(len(order)) - np.repeat(np.cumsum(self.copies) - self.copies, self.copies)
        slots = np.full((len(self.copies), int(self.copies.max(initial=1))), -1, np.int32)
        slots[self.expert[order], place] = order
        return slots

    @cached_property
    def slot(self) -> np.ndarray:
        """`[E]` int32: the first slot of each expert."""
        return self.slots[:, 0]

    @property
    def replicated(self) -> bool:
        """Whether an expert has more than one slot."""
        return self.slots.shape[1] > 1

    @cached_property
    def most(self) -> int:
        """The largest number of slots on a rank."""
        return int(np.diff(self.first).max(initial=0))

    def held_by(self, rank: int) -> list[int]:
        """The experts in the slots of `rank`, in the order of its slots."""
        return [int(e) for e in self.expert[self.first[rank]:self.first[rank + 1]]]


Placements = Sequence[Placement]
"""`[L]`: one for each layer; those of dense layers mean nothing"""


def most(placements: Placements) -> int:
    """The largest number of slots that a rank has in any layer."""
    return max(placement.most for placement in placements)


def held_by(placements: Placements, rank: int) -> Callable[[int], list[int]]:
    """layer -> the experts in the slots of `rank` there, in their order."""
    return lambda layer: placements[layer].held_by(rank)


def fullest(placements: Placements) -> int:
    """The rank with the most slots in all layers; the lowest at a tie."""
    return int(np.sum([np.diff(placement.first) for placement in placements], axis=0).argmax())


def members(node: Sequence[int] | np.ndarray) -> list[np.ndarray]:
    """`[N]`: the ranks of each node, ascending; node `[R]` integers, numbered from 0."""
    return [np.flatnonzero(np.asarray(node) == number) for number in range(int(np.max(node, initial=-1)) + 1)]


def places(node: Sequence[int] | np.ndarray) -> np.ndarray:
    """`[R]` int64: the number of each rank among those of its node, ascending.

    In two hops rows of a rank for another node go to the rank with the same place there, or, where that node is
    smaller, with that place modulo its size.
    """
    place = np.zeros(len(node), np.int64)
    for ranks in members(node):
        place[ranks] = np.arange(len(ranks))
    return place


@dataclass(frozen=True)
class Topology:
    """What lies between ranks."""

    node: np.ndarray
    """`[R]` int32: the node of each rank, numbered from 0 in the order of their first ranks"""
    latency: np.ndarray
    """`[R, R]` float64 seconds, from and to; 0 on the diagonal"""
    rate: np.ndarray
    """`[R, R]` float64 bytes/s, from and to; inf on the diagonal"""

    @property
    def ranks(self) -> int:
        return len(self.node)

    @property
    def nodes(self) -> int:
        return int(self.node.max(initial=-1)) + 1


@dataclass(frozen=True)
class Routing:
    """Where the tokens of a run went."""

    load: np.ndarray
    """`[L, R, E]` int64: rows that the tokens of each rank sent to each expert; zeros in dense layers"""
    rank: np.ndarray
    """`[n]` int32: the rank of each sampled token,"""
    expert: np.ndarray
    """`[n, L, K]` int16: and its experts in each layer; -1 in dense layers"""
    computed: np.ndarray = field(default_factory=lambda: np.empty((0, 0), np.int64))
    """`[L, R]` int64: rows that the experts of each rank computed; empty where nothing was"""
