"""Which slots go to one node: those that fire together, so that tokens touch few nodes.

From several starts a local search swaps slots between nodes. The best swap of each pair of nodes is found at once
(`touch.look`), and those of disjoint pairs of nodes are done together: what they change adds up exactly. Then the best
grouping is shaken and searched again, until the looks that are granted are used up: no clock decides, so the same input
gives the same groups.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from hpcmoe.placement.solve import assignment
from hpcmoe.placement.starts import grown, spectral
from hpcmoe.placement.touch import Tokens, cost, look, touched

ALLOWED = 2400
"""Looks for all layers of a plan together;"""
FEWEST, MOST = 24, 400
"""and for each of them, at least and at most."""
LEANS = (0.0, 0.5, 1.0)
"""Of the starts that grow, see `starts.grown`."""
LEAST = 1e-9
"""Changes of cost that are none."""


@dataclass(frozen=True)
class Room:
    """What nodes may hold."""

    expert: np.ndarray
    """`[S]` int64: of each slot"""
    sizes: np.ndarray
    """`[N]` int64: slots of each node"""
    ranks: np.ndarray
    """`[N]` int64: ranks of each node; it may hold no more replicas of one expert"""

    def held(self, node: np.ndarray) -> np.ndarray:
        """`[E, N]`: how many slots with each expert each node has."""
        shape = int(self.expert.max()) + 1, len(self.sizes)
        return np.bincount(self.expert * shape[1] + node, minlength=shape[0] * shape[1]).reshape(shape)

    def fits(self, node: np.ndarray) -> bool:
        """Whether it may be so."""
        return bool((self.held(node) <= self.ranks).all())

    def barred(self, node: np.ndarray) -> np.ndarray | None:
        """`[S, S]` bool: slots that may not swap, or are of one expert; None where all may."""
        held = self.held(node)
        if held.sum(axis=1).max() <= 1:
            return None
        full = (held >= self.ranks)[self.expert][:, node]
        return full | full.T | (self.expert[:, None] == self.expert)


def granted(layers: int) -> int:
    """Looks for each of so many layers."""
    return int(np.clip(ALLOWED // max(layers, 1), FEWEST, MOST))


@dataclass
class Budget:
    """Looks that are left."""

    looks: int


def group(tokens: Tokens, room: Room, first: np.ndarray, looks: int,
          seed: tuple[int, int]) -> np.ndarray:
    """`[S]` int64: the node of each slot; never worse than `first`, where the search begins too. So many looks."""
    budget, draw = Budget(looks), np.random.default_rng(seed)
    begun = [(cost(tokens, node), node) for node in (first, *_starts(tokens, room)) if room.fits(node)]
    best, node = min(begun, key=lambda one: one[0])
    for _, start in sorted(begun, key=lambda one: one[0]):
        paid, end = descend(tokens, room, start, budget)
        if paid < best - LEAST:
            best, node = paid, end
    turn = 0
    while budget.looks > 0 and tokens.nodes > 1:
        paid, end = descend(tokens, room, shaken(node, room, draw, turn), budget)
        if paid <= best:
            best, node = paid, end
        turn += 1
    return named(tokens, room, node)


def _starts(tokens: Tokens, room: Room) -> Iterator[np.ndarray]:
    for lean in LEANS:
        yield named(tokens, room, grown(tokens, room.sizes, lean))
    yield named(tokens, room, spectral(tokens, room.sizes))


def descend(tokens: Tokens, room: Room, node: np.ndarray, budget: Budget) -> tuple[float, np.ndarray]:
    """Swaps as long as one helps and a look is left."""
    paid = cost(tokens, node)
    while budget.looks > 0:
        budget.looks -= 1
        change, barred = look(tokens, node).change, room.barred(node)
        if barred is not None:
            change[barred] = np.inf
        changed = swapped(node, change)
        now = cost(tokens, changed)
        if not now < paid - LEAST or not room.fits(changed):
            break
        paid, node = now, changed
    return paid, node


def swapped(node: np.ndarray, change: np.ndarray) -> np.ndarray:
    """With the best swap of each of some disjoint pairs of nodes done, the best pair first. change `[S, S]`."""
    order = np.argsort(node, kind="stable")
    filled, first = np.unique(node[order], return_index=True)
    blocks = change[np.ix_(order, order)]
    best = np.minimum.reduceat(np.minimum.reduceat(blocks, first, axis=1), first, axis=0)
    np.fill_diagonal(best, np.inf)
    ends, node = [*first[1:], len(node)], node.copy()
    while True:
        x, y = np.unravel_index(best.argmin(), best.shape)
        if best[x, y] >= -LEAST:
            return node
        best[[x, y]] = best[:, [x, y]] = np.inf
        block = blocks[first[x]:ends[x], first[y]:ends[y]]
        row, column = np.unravel_index(block.argmin(), block.shape)
        node[order[first[x] + row]], node[order[first[y] + column]] = filled[y], filled[x]


def shaken(node: np.ndarray, room: Room, draw: np.random.Generator, turn: int) -> np.ndarray:
    """With a few slots swapped, more of them every other time."""
    node = node.copy()
    for a, b in draw.integers(len(node), size=((2, 2 + len(node) // 16)[turn % 2], 2)).tolist():
        node[a], node[b] = node[b], node[a]
        if not room.fits(node):
            node[a], node[b] = node[b], node[a]
    return node


def named(tokens: Tokens, room: Room, node: np.ndarray) -> np.ndarray:
    """The same groups on other nodes of their sizes, so that the most tokens have a node of theirs at home."""
    if tokens.home is None:
        return node
    _, count = touched(tokens, node)
    N = tokens.nodes
    place = (node[tokens.slot] * N + tokens.home[:, None]).ravel()
    at_home = np.bincount(place, (1 / count).ravel(), minlength=N * N).reshape(N, N)
    price = at_home.sum(axis=1)[:, None] * tokens.weight - at_home
    same = (room.sizes[:, None] == room.sizes) & (room.ranks[:, None] == room.ranks)
    return assignment(np.where(same, price, np.inf))[node]
