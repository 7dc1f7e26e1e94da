"""From the slots of each token to rows in the order of their destinations, and back.

Where experts are cut into t shards, a token goes to the t ranks of a slot's group, and t partial rows of float32 come
home, which are added up in the order of the shards. So where no two experts of a token share a rank, its rows take
K * t * H * itemsize bytes there and K * t * H * 4 back, less those that stay on their rank.
"""

import numpy as np

from hpcmoe.slots import Placement
from hpcmoe.types import ReceivePlan, SendPlan

TRAILER = 8
"""A trailer's width is a multiple of this: 16 bytes of int16."""


def trailer_width(most: int, top_k: int) -> int:
    """int16 values behind each row: enough for the slots that one token can need on one rank, or none.

    `most` is the largest number of slots on a rank.
    """
    return -(-min(top_k, most) // TRAILER) * TRAILER if most > 1 else 0


def plan_send(slot: np.ndarray, placement: Placement, width: int) -> SendPlan:
    """How the rows of a micro-batch leave, one for each (token, rank), and come home, one for each (token, k), or for
    each (token, k, shard): `SendPlan.home` is then `[T, K * t]`.

    slot `[T, K]` int32: where each answer is to be computed; `width` is that of the trailer, 0 where no rank has more
    than one slot.
    """
    rank, number = seats(slot, placement)
    return plan_rows(None, rank, number, placement.ranks, width)


def seats(slot: np.ndarray, placement: Placement) -> tuple[np.ndarray, np.ndarray]:
    """`[T, K * t]` each: the ranks that answer slots `[T, K]`, shard by shard, and the slots' numbers there, from 0."""
    rank, shards = placement.rank[slot], placement.shards
    number = slot - placement.first[rank]
    if shards == 1:
        return rank, number
    number = np.repeat(number, shards, axis=1)
    return (rank[:, :, None] + np.arange(shards, dtype=rank.dtype)).reshape(number.shape), number


def plan_rows(token: np.ndarray | None, rank: np.ndarray, number: np.ndarray, ranks: int, width: int) -> SendPlan:
    """How pairs of a token and a rank leave, each token once for each rank.

    rank: integers `[n]` for tokens `[n]`, in their order, or `[T, K]` for None; number: of the same shape, what the
    trailer says of each pair. `home` has that shape, too. `width` as in `plan_send`.
    """
    shape, rank, number = rank.shape, rank.ravel(), number.ravel()
    order = np.argsort(rank, kind="stable")  # of the pairs, by (rank, token, k)
    back = np.empty(len(order), np.int32)
    back[order] = np.arange(len(order))
    home = back.reshape(shape)
    home_counts = np.bincount(rank, minlength=ranks)
    token = (order // shape[1] if token is None else token[order]).astype(np.int32)
    if not width:
        return SendPlan(token, np.empty((len(order), 0), np.int16), home_counts, home, home_counts)
    rank = rank[order]
    begins = np.ones(len(order), bool)  # whether a pair is the first of its (rank, token)
    begins[1:] = (token[1:] != token[:-1]) | (rank[1:] != rank[:-1])
    row = np.cumsum(begins) - 1
    column = np.arange(len(order)) - np.flatnonzero(begins)[row]
    trailer = np.full((int(begins.sum()), width), -1, np.int16)
    trailer[row, column] = number[order]
    return SendPlan(token[begins], trailer, np.bincount(rank[begins], minlength=ranks), home, home_counts)


def plan_receive(counts: np.ndarray, trailer: np.ndarray, slots: int) -> ReceivePlan:
    """What to do with received rows: `counts` `[R]` from each rank, `trailer` `[M, W]` behind each row.

    `slots` is the number on this rank.
    """
    M = int(counts.sum())
    if not trailer.shape[1]:
        rows = np.arange(M, dtype=np.int32)
        return ReceivePlan(rows, rows, np.array([M] * slots, np.int64), counts)
    row, column = np.nonzero(trailer >= 0)  # in the order of return: by (source, token, k)
    slot = trailer[row, column]
    source = np.repeat(np.arange(len(counts)), counts)
    place = np.argsort(slot, kind="stable")
    return ReceivePlan(row[place].astype(np.int32), place.astype(np.int32), np.bincount(slot, minlength=slots),
                       np.bincount(source[row], minlength=len(counts)))
