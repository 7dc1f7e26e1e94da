"""How many nodes tokens touch, and what every swap of two slots would change about it, all at once.

A token costs a node's weight if at least one of its K slots is there; a slot that leaves takes the tokens along that
have no other slot on its node, and brings to its new node those that had none there. For all pairs of slots these are
sums over pairs of slots of one token: n · K² numbers, counted into a table of S². A swap changes what its two nodes
cost and nothing else, so the changes of swaps between disjoint pairs of nodes add up.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np


@dataclass(frozen=True)
class Tokens:
    """Sampled tokens, and what each node costs them."""

    slot: np.ndarray
    """`[n, K]` int64: the slots of each token"""
    slots: int
    weight: np.ndarray
    """`[N]` float64: what a token pays that touches a node,"""
    home: np.ndarray | None
    """`[n]` int64: a node where it pays 1 less, its own; or None"""

    @property
    def nodes(self) -> int:
        return len(self.weight)

    @cached_property
    def pair(self) -> np.ndarray:
        """`[n · K · K]` int64: each pair of slots of each token, as a place in a table of S²."""
        return (self.slot[:, :, None] * self.slots + self.slot[:, None, :]).ravel()

    @cached_property
    def most(self) -> np.ndarray:
        """`[S, N]` float64: what the tokens of each slot would pay for each node, had they nothing else there."""
        found = np.bincount(self.slot.ravel(), minlength=self.slots)[:, None] * self.weight
        if self.home is not None:
            place = self.slot * self.nodes + self.home[:, None]
            found -= np.bincount(place.ravel(), minlength=found.size).reshape(found.shape)
        return found


@dataclass(frozen=True)
class Look:
    """What tokens pay as slots lie, and what they would."""

    cost: float
    instead: np.ndarray
    """`[S, S]` float64: what all pay more for the node of one slot (column) if another (row) takes its place there"""

    @property
    def change(self) -> np.ndarray:
        """`[S, S]` float64: what all pay more if two slots swap their nodes. Of slots of one node it means nothing."""
        return self.instead + self.instead.T


def touched(tokens: Tokens, node: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What each (token, k) pays for its node, and how many slots of the token are there, `[n, K]` each.

    node `[S]` int64: of each slot.
    """
    there = node[tokens.slot]
    pays = tokens.weight[there]
    if tokens.home is not None:
        pays -= there == tokens.home[:, None]
    count = np.zeros(there.shape)
    for column in there.T:
        count += there == column[:, None]
    return pays, count


def cost(tokens: Tokens, node: np.ndarray) -> float:
    """What all tokens pay."""
    pays, count = touched(tokens, node)
    return float((pays / count).sum())


def look(tokens: Tokens, node: np.ndarray) -> Look:
    """At all swaps. node `[S]` int64."""
    S, N = tokens.slots, tokens.nodes
    pays, count = touched(tokens, node)
    shared, alone = pays / count, np.where(count == 1, pays, 0)
    taken = np.bincount(tokens.slot.ravel(), alone.ravel(), minlength=S)  # by a slot that leaves
    place = tokens.slot[:, :, None] * N + node[tokens.slot][:, None, :]
    already = np.bincount(place.ravel(), _each(shared), minlength=S * N)  # by the tokens of each slot, for each node
    # of tokens that have both slots: what the one that leaves takes, the other one brings back
    kept = np.bincount(tokens.pair, _each(alone), minlength=S * S)
    instead = np.take(tokens.most - already.reshape(S, N), node, axis=1)
    instead -= taken
    instead += kept.reshape(S, S)
    return Look(float(shared.sum()), instead)


def _each(values: np.ndarray) -> np.ndarray:
    """`[n · K · K]`: values `[n, K]` of the second slot of each pair of slots of a token."""
    n, K = values.shape
    return np.broadcast_to(values[:, None, :], (n, K, K)).ravel()
