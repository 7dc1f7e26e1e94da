"""Which replica of an expert each token goes to. Every rank shares out its own rows, without a word to the others.

Shares are `[E, C]`: how many of the rank's rows each replica of an expert gets, in the order of `Near`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hpcmoe.slots import Placement


@dataclass(frozen=True)
class Near:
    """The replicas of each expert in a layer, as a rank sees them."""

    order: np.ndarray
    """`[E, C]` int64: columns of `Placement.slots`, the nearest replica first"""
    slot: np.ndarray
    """`[E, C]` int32: their slots; -1 behind the last"""


def near(placement: Placement, nodes: Sequence[int], me: int) -> Near:
    """What rank `me` or its group has itself, then its node, then others; `nodes` `[R]` as in `launch.World`.

    Among equals each rank or group begins with another one, so that the odd rows of many do not meet.
    """
    slots, node, C = placement.slots, np.asarray(nodes), placement.slots.shape[1]
    rank, group = placement.rank[slots], me // placement.shards
    me = group * placement.shards
    turn = (np.arange(C) - group) % placement.copies[:, None].clip(1)
    far = np.where(slots < 0, 3, np.where(rank == me, 0, np.where(node[rank] == node[me], 1, 2)))
    order = np.argsort(far * C + turn, axis=1, kind="stable")
    return Near(order, np.take_along_axis(slots, order, axis=1))


def spread(expert: np.ndarray, to: Near, shares: np.ndarray) -> np.ndarray:
    """`[T, K]` int32: the slot that each (token, k) goes to; an expert's rows go to its replicas block by block.

    expert `[T, K]` int32.
    """
    flat = expert.ravel()
    order = np.argsort(flat, kind="stable")
    e, counts = flat[order], np.bincount(flat, minlength=len(shares))
    nth = np.arange(len(e)) - np.repeat(np.cumsum(counts) - counts, counts)  # of its expert's rows
    slot = np.empty(len(e), np.int32)
    slot[order] = to.slot[e, (nth[:, None] >= np.cumsum(shares, axis=1)[e]).sum(axis=1)]
    return slot.reshape(expert.shape)


def even(counts: np.ndarray, placement: Placement) -> np.ndarray:
    """Shares as even as can be: the nearest replicas take the odd rows. counts `[E]` int64 are this rank's rows."""
    copies, turn = placement.copies[:, None], np.arange(placement.slots.shape[1])
    each, odd = np.divmod(counts[:, None], copies.clip(1))
    return (each + (turn < odd)) * (turn < copies)


def exact(counts: np.ndarray, placement: Placement, nodes: Sequence[int], me: int, to: Near) -> np.ndarray:
    """Shares of rank `me` where no replica gets more than ceil(n_e / c_e) rows of all ranks, and as many as can be stay
    on their rank, in its group, then on their node.

    counts `[R, E]` int64: rows of each rank for each expert. All ranks come to one answer. No other one keeps more rows
    near: what can stay on a node depends on its rows and its replicas alone, whichever stay on their ranks.
    """
    slots, node, E = placement.slots, np.asarray(nodes), len(placement.slots)
    there, rank = slots >= 0, placement.rank[slots]
    waiting = counts.T.copy()  # [E, R]: rows without a place
    room = np.where(there, -(-counts.sum(axis=0) // placement.copies.clip(1))[:, None], 0)  # [E, C]
    expert = np.broadcast_to(np.arange(E)[:, None], slots.shape)
    stay = np.where(there, np.minimum(waiting[expert, rank], room), 0)
    np.subtract.at(waiting, (expert[there], rank[there]), stay[there])
    room = room - stay
    mine = np.where(rank == me, stay, 0)
    for head in range(0, placement.ranks, placement.shards) if placement.shards > 1 else ():
        group = np.arange(placement.ranks) // placement.shards == head // placement.shards
        mine += _fill(waiting, room, group, there & (rank == head), me)
    for group in range(int(node.max()) + 1):
        mine += _fill(waiting, room, node == group, there & (node[rank] == group), me)
    mine += _fill(waiting, room, node >= 0, there, me)
    return np.take_along_axis(mine, to.order, axis=1)


def _fill(waiting: np.ndarray, room: np.ndarray, ranks: np.ndarray, replicas: np.ndarray, me: int) -> np.ndarray:
    """`[E, C]`: what of rank `me` goes to each replica, where the rows of `ranks` `[R]` bool fill the room of
    `replicas` `[E, C]` bool, both in their order. Takes it from waiting `[E, R]` and room `[E, C]`."""
    rows, left = waiting * ranks, room * replicas
    row_ends, left_ends = np.cumsum(rows, axis=1), np.cumsum(left, axis=1)
    row_begins, left_begins = row_ends - rows, left_ends - left
    both = np.minimum(row_ends[:, -1:], left_ends[:, -1:])
    mine = np.minimum(row_ends[:, me:me + 1], left_ends) - np.maximum(row_begins[:, me:me + 1], left_begins)
    waiting -= np.clip(both - row_begins, 0, rows)
    room -= np.clip(both - left_begins, 0, left)
    return np.maximum(mine, 0)
