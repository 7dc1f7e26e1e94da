"""Groups that are good, made even: the slowest node is relieved, as far as tokens may pay for it."""

from dataclasses import dataclass

import numpy as np

from hpcmoe.placement.group import LEAST, Room
from hpcmoe.placement.touch import Tokens, look, touched

LOOKS = 32
"""At swaps, at most."""
AT_ONCE = 8
"""One in so many nodes is relieved by a look, at most."""


@dataclass(frozen=True)
class Price:
    """Seconds of a node's ranks, which share its work as evenly as whole slots can be shared."""

    each: np.ndarray
    """`[S]` float64: of the rank that has the slot"""
    passed: np.ndarray
    """`[S]` float64: to pass on what the slot answers, of all ranks of the node together"""
    token: float
    """to take in a sampled token that touches the node, of all ranks together"""


@dataclass(frozen=True)
class Busy:
    """What keeps each node busy."""

    node: np.ndarray
    """`[S]`: of each slot"""
    price: Price
    ranks: np.ndarray
    """`[N]`: of each node"""
    together: np.ndarray
    """`[N]`: seconds of all its ranks to take in and pass on,"""
    slots: np.ndarray
    """`[N]`: and those of its slots"""
    rest: np.ndarray
    """`[S]`: seconds of the dearest other slot on each slot's node"""
    seconds: np.ndarray
    """`[N]`: of its slowest rank"""

    def after(self, leaves: np.ndarray, comes: np.ndarray, instead: np.ndarray) -> np.ndarray:
        """Seconds of a node's slowest rank when one slot leaves it and another comes; instead: see `touch.Look`."""
        node, price = self.node[leaves], self.price
        together = (self.together[node] + price.passed[comes] - price.passed[leaves]
                    + price.token * instead[comes, leaves])
        slots = self.slots[node] + price.each[comes] - price.each[leaves]
        dearest = np.maximum(self.rest[leaves], price.each[comes])
        return together / self.ranks[node] + np.maximum(slots / self.ranks[node], dearest)


def busy(node: np.ndarray, paid: np.ndarray, price: Price, ranks: np.ndarray) -> Busy:
    """node `[S]`; paid, ranks `[N]`: what tokens pay for each node, and its ranks."""
    N = len(ranks)
    slots = np.bincount(node, price.each, minlength=N)
    together = np.bincount(node, price.passed, minlength=N) + price.token * paid
    order = np.lexsort((price.each, node))
    count = np.bincount(node, minlength=N)
    last = np.cumsum(count) - 1  # the dearest slot of each node, in that order
    dearest, second = (np.where(count > nth, price.each[order[np.maximum(last - nth, 0)]], 0) for nth in (0, 1))
    rest = dearest[node]
    rest[order[last[count > 0]]] = second[count > 0]
    return Busy(node, price, ranks, together, slots, rest, together / ranks + np.maximum(slots / ranks, dearest))


def evened(tokens: Tokens, room: Room, node: np.ndarray, most: float, price: Price) -> np.ndarray:
    """`[S]` int64: `node` with swaps that make the slowest node quicker, as long as tokens pay no more than `most`.

    What a look at swaps tells holds until one of the two nodes is changed, so each look serves for many.
    """
    for _ in range(LOOKS):
        pays, count = touched(tokens, node)
        paid = np.bincount(node[tokens.slot].ravel(), (pays / count).ravel(), minlength=tokens.nodes)
        instead, barred, fresh = look(tokens, node).instead, room.barred(node), np.ones(tokens.nodes, bool)
        changed = 0
        while changed < max(1, tokens.nodes // AT_ONCE):
            swap = _relief(busy(node, paid, price, room.ranks), fresh, instead, barred, most - paid.sum())
            if not swap:
                break
            e, f = swap
            paid[node[e]] += instead[f, e]
            paid[node[f]] += instead[e, f]
            fresh[node[[e, f]]] = False
            node, changed = node.copy(), changed + 1
            node[e], node[f] = node[f], node[e]
        if not changed:
            break
    return node


def _relief(now: Busy, fresh: np.ndarray, instead: np.ndarray, barred: np.ndarray | None,
            room: float) -> tuple[int, int] | None:
    """The swap of the slowest node with a fresh one that makes both quickest, what tokens pay counted in; None where
    it is not fresh, or nothing makes it quicker for which tokens pay no more than `room`."""
    slow = int(now.seconds.argmax())
    mine, others = np.flatnonzero(now.node == slow), np.flatnonzero((now.node != slow) & fresh[now.node])
    if not fresh[slow] or not len(mine) or not len(others):
        return None
    here = now.after(mine[:, None], others[None], instead)
    there = now.after(others[:, None], mine[None], instead).T
    table = np.ix_(mine, others)
    pays, slower = (instead + instead.T)[table], np.maximum(here, there)
    wrong = (pays > room + LEAST) | (slower >= now.seconds[slow] * (1 - LEAST))
    if barred is not None:
        wrong |= barred[table]
    worth = np.where(wrong, np.inf, slower + now.price.token * pays / now.ranks.mean())
    a, b = np.unravel_index(worth.argmin(), worth.shape)
    return None if wrong[a, b] else (int(mine[a]), int(others[b]))
