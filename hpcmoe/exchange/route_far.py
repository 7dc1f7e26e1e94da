"""Plans of two hops: what a source sends to relays, and what a relay hands out and gathers again.

A relay learns all from the trailers that arrive. Behind a row they list K int16, one for each of the token's answers:
the place of the rank in its node times `Grid.room`, plus the slot there; -1 where another node gives the answer. Where
relays sum, the K weights follow, as the bits of float32. Rows on the second hop are as wide as on the first one, and
their trailers list slots as those of `route.plan_send` do.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from hpcmoe.errors import JobError
from hpcmoe.exchange.grid import Grid, Seat
from hpcmoe.exchange.route import TRAILER, plan_rows, seats
from hpcmoe.slots import Placement
from hpcmoe.types import SendPlan


def far_width(top_k: int, presum: bool) -> int:
    """int16 values behind each row; `presum` is whether relays sum."""
    return -(-top_k * (3 if presum else 1) // TRAILER) * TRAILER


def plan_send_far(slot: np.ndarray, weight: np.ndarray | None, placement: Placement, grid: Grid, me: int) -> SendPlan:
    """How the rows of a micro-batch leave rank `me`, one for each (token, node), and come home.

    slot `[T, K]` int32: where each answer is to be computed. Without `weight` one row comes home for each (token, k),
    ordered by (relay, token, k); where experts are cut into t shards, t rows, as if K were K * t. With it, `[T, K]`
    float32, of whole experts only, relays sum, and one comes for each (token, node): then `home` is
    `[T, min(K, N)]`, a token's rows in the order of their nodes, -1 behind the last. Raises `JobError`.
    """
    R = placement.ranks
    if placement.most > grid.room:
        raise JobError(f"exchange.mode = twohop: a rank has {placement.most} slots of a layer, and with nodes of "
                       f"{1 + grid.place.max()} ranks it can have {grid.room}; take another mode")
    rank, number = seats(slot, placement)
    number, K = grid.place[rank] * grid.room + number, rank.shape[1]
    relay = grid.relay[me][grid.node[rank]]
    width = far_width(K, weight is not None)
    plan = plan_rows(None, relay, number, R, width)
    here = relay[plan.token] == np.repeat(np.arange(R), plan.counts)[:, None]
    trailer = np.full((len(plan.token), width), -1, np.int16)
    trailer[:, :K] = np.where(here, number[plan.token], -1)
    plan = replace(plan, trailer=trailer, behind=_behind(rank, R))
    if weight is None:
        return plan
    trailer[:, K:3 * K] = weight[plan.token].view(np.int16)
    node = grid.node[np.repeat(np.arange(R), plan.counts)]
    return replace(plan, home=_by_node(plan.token, node, len(slot), min(K, grid.nodes)), home_counts=plan.counts)


def _behind(rank: np.ndarray, ranks: int) -> tuple[np.ndarray, np.ndarray]:
    """See `SendPlan.behind`; rank `[T, K]`."""
    row = np.sort(rank, axis=1)
    begins = np.ones(row.shape, bool)
    begins[:, 1:] = row[:, 1:] != row[:, :-1]
    return np.bincount(row[begins], minlength=ranks), np.bincount(rank.ravel(), minlength=ranks)


def _by_node(token: np.ndarray, node: np.ndarray, tokens: int, most: int) -> np.ndarray:
    """`[T, most]` int32: the rows of each token in the order of their nodes; token, node `[n]` of each row."""
    order = np.lexsort((node, token))
    counts = np.bincount(token, minlength=tokens)
    home = np.full((tokens, most), -1, np.int32)
    home[token[order], np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)] = order
    return home


@dataclass(frozen=True)
class Forward:
    """What a relay does with M rows of the first hop, and with A answers to them. Sources are those of its rail.

    What only answers need is worked out when they are asked for: rows do not wait for it.
    """

    hand: SendPlan
    """the second hop: its tokens are rows of the first one, its ranks those of the node; its `home` is `[A]`: where
    each answer lies among those that they give, by (source, token, k)"""
    counts: np.ndarray
    """`[sources]` int64: rows of each"""
    trailer: np.ndarray
    """`[M, W]` int16: as they came"""
    row: np.ndarray
    k: np.ndarray
    """`[A]` int64 each: what the answers are to"""
    top_k: int

    @cached_property
    def answers(self) -> np.ndarray:
        """`[sources]` int64: answers to each."""
        source = np.repeat(np.arange(len(self.counts)), self.counts)
        return np.bincount(source[self.row], minlength=len(self.counts))

    @cached_property
    def home(self) -> np.ndarray:
        """`[M, K]` int32: where the answers to each row lie; -1 where another node gives them."""
        home = np.full((len(self.trailer), self.top_k), -1, np.int32)
        home[self.row, self.k] = self.hand.home
        return home

    @cached_property
    def weight(self) -> np.ndarray:
        """`[M, K]` float32: what they weigh, where relays sum."""
        return np.ascontiguousarray(self.trailer[:, self.top_k:3 * self.top_k]).view(np.float32)


def plan_forward(trailer: np.ndarray, counts: np.ndarray, seat: Seat, top_k: int) -> Forward:
    """For trailers `[M, W]` int16 that arrived, by (source, token); counts `[sources]`: rows of each."""
    number = trailer[:, :top_k]
    row, k = np.nonzero(number >= 0)
    number, room = number[row, k], seat.grid.room
    hand = plan_rows(row, number // room, number % room, seat.members, trailer.shape[1])
    return Forward(hand, counts, trailer, row, k, top_k)
