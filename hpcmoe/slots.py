"""Who holds what, and what is known when that is decided: slots, the routing of an earlier run, the network."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from hpcmoe.spec import Tensor


@dataclass(frozen=True)
class Placement:
    """Who holds what in one layer: a table of S slots, ascending by rank.

    A slot holds one expert, or one of its replicas. No rank holds two replicas of one expert. Where experts are cut
    into t shards, t neighbouring ranks are a group that has slots together: each has its shard of what is in them.
    """

    ranks: int
    rank: np.ndarray
    """`[S]` int32: the rank that has the slot; of a group, its first one"""
    expert: np.ndarray
    """`[S]` int32: the expert that is in it"""
    shards: int = 1
    """t, shards of an expert: ranks 0 to t - 1 are the first group, and so on"""

    @cached_property
    def first(self) -> np.ndarray:
        """`[R + 1]` int32: the first slot of each rank, of a group's first one; its last entry is S."""
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
        """The experts in the slots of `rank`, or its group, in the order of its slots."""
        rank -= rank % self.shards
        return [int(e) for e in self.expert[self.first[rank]:self.first[rank + 1]]]

    def cut(self, shards: int) -> "Placement":
        """The same on groups of so many ranks, where it was on ranks that hold whole experts."""
        assert self.shards == 1
        return Placement(self.ranks * shards, self.rank * np.int32(shards), self.expert, shards)

    @property
    def grouped(self) -> "Placement":
        """The placement of whole experts on groups that this one was `cut` of."""
        return Placement(self.ranks // self.shards, self.rank // np.int32(self.shards), self.expert)


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


@dataclass(frozen=True)
class Shard:
    """Which of the parts of an expert's width a rank holds: they are as even as can be, longer ones first."""

    number: int = 0
    """from 0"""
    of: int = 1

    def span(self, width: int) -> tuple[int, int]:
        """Its first value and the one behind its last, of `width`: as `numpy.array_split` cuts."""
        each, longer = divmod(width, self.of)
        first = self.number * each + min(self.number, longer)
        return first, first + each + (self.number < longer)


def shard_of(placements: Placements, rank: int) -> Shard:
    """What `rank` holds of the experts in its slots."""
    return Shard(rank % placements[0].shards, placements[0].shards)


@dataclass(frozen=True)
class Piece(Tensor):
    """A part of a tensor; its shape is the part's."""

    whole: tuple[int, ...] = ()
    """the shape of all"""
    rows: tuple[tuple[int, int], ...] = ()
    """rows of it that are there, in ranges: the first one, and the one behind the last"""
    columns: tuple[int, int] = (0, 0)
    """of a matrix: those of these rows"""

    def within(self, rows: slice) -> tuple[slice, ...]:
        """What is there of such rows of the whole, as an index."""
        return (rows, slice(*self.columns))[:len(self.shape)]


def piece(tensor: Tensor, shard: Shard) -> Tensor | None:
    """What a rank with `shard` keeps of a tensor: of an expert the gate rows and up rows of its part of I, with their
    biases, and as many columns of down, whose bias is the first shard's; all of any other."""
    if shard.of == 1 or tensor.expert is None:
        return tensor
    if tensor.kind == "experts/down_bias":
        return None if shard.number else tensor
    out, *rest = tensor.shape
    if tensor.kind == "experts/down":
        first, end = shard.span(rest[0])
        return Piece(tensor.name, (out, end - first), tensor.part, tensor.expert, tensor.shape, ((0, out),),
                     (first, end))
    first, end = shard.span(out // 2)
    return Piece(tensor.name, (2 * (end - first), *rest), tensor.part, tensor.expert, tensor.shape,
                 ((first, end), (out // 2 + first, out // 2 + end)), (0, rest[0] if rest else 0))


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
    """`[L, R]` int64: rows that the experts of each rank, or its shards of them, computed; empty where nothing was"""
