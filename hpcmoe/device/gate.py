"""The choice of experts, and the order of the rows that leave; gate.cu. Twins: `kernels.gate`, `exchange.route`."""

from dataclasses import dataclass

import cupy
import numpy as np

from hpcmoe.device.cuda import launch, pinned
from hpcmoe.device.scratch import TILE
from hpcmoe.spec import Moe
from hpcmoe.types import Placement

SCORES = ("softmax", "sigmoid", "softmax_of_chosen")


@dataclass(frozen=True)
class Route:
    """Where a micro-batch's tokens go; room for T of them, of which the first ones count."""

    expert: cupy.ndarray
    """`[T, K]` int32"""
    weight: cupy.ndarray
    """`[T, K]` float32"""
    rank: cupy.ndarray
    """`[T, K]` int32: of the expert"""
    row: cupy.ndarray
    """`[T, K]` int32: among the rows for that rank; -1 where an earlier k's row serves this one too"""
    home: cupy.ndarray
    """`[T, K]` int32: among the answers from that rank"""
    tiles: tuple[cupy.ndarray, cupy.ndarray]
    """`[tiles, R]` int32: rows and answers"""
    counts: np.ndarray
    """`[R]` int64, pinned: rows for each rank"""
    home_counts: np.ndarray
    """`[R]` int64, pinned: answers from each rank"""


def make_route(tokens: int, top_k: int, ranks: int) -> Route:
    """Room for micro-batches of so many tokens."""
    expert, rank, row, home = (cupy.empty((tokens, top_k), np.int32) for _ in range(4))
    tiles = cupy.empty((2, max(1, -(-tokens // TILE)), ranks), np.int32)
    return Route(expert, cupy.empty((tokens, top_k), np.float32), rank, row, home, (tiles[0], tiles[1]),
                 pinned(ranks, np.int64), pinned(ranks, np.int64))


@dataclass(frozen=True)
class Map:
    """A placement on the device."""

    rank: cupy.ndarray
    """`[E]` int32: the rank of each expert"""
    local: cupy.ndarray
    """`[E]` int16: its slot there"""


def make_map(placement: Placement) -> Map:
    """Of the experts of one layer."""
    rank = placement.rank[placement.slot]
    return Map(cupy.asarray(rank.astype(np.int32)),
               cupy.asarray((placement.slot - placement.first[rank]).astype(np.int16)))


def choose(moe: Moe, logits: cupy.ndarray, bias: cupy.ndarray | None, route: Route, load: cupy.ndarray) -> None:
    """The top K experts of each token, from logits `[T, E]` float32; load `[E]` uint64 counts them."""
    T, E = logits.shape
    groups, counted = moe.groups, 1 if moe.group_score == "max" or moe.groups == E else 2
    warps = max(1, min(4, 48 * 1024 // (4 * (2 * E + groups))))
    launch("gate.choose", -(-T // warps), logits, bias, route.expert, route.weight, load, T, E, moe.top_k,
           SCORES.index(moe.score), groups, moe.groups_kept, counted, moe.renormalise, moe.round_logits,
           moe.round_weights, float(moe.scale), threads=32 * warps,
           shared=4 * warps * (2 * E + groups))


def order(route: Route, at: Map, tokens: int, ranks: int) -> None:
    """Rows and answers of the first `tokens` tokens by (rank, token, k); the counts reach the host behind it."""
    K = route.expert.shape[1]
    tiles, threads = -(-tokens // TILE), min(1024, -(-ranks // 32) * 32)
    shared = 2 * TILE * K
    rows, homes = route.tiles
    launch("gate.count_tiles", tiles, route.expert, at.rank, rows, homes, tokens, K, ranks, threads=threads,
           shared=shared)
    launch("gate.sum_tiles", -(-ranks // 32), rows, homes, route.counts, route.home_counts, tiles, ranks, threads=32)
    launch("gate.place", tiles, route.expert, at.rank, rows, homes, route.rank, route.row, route.home, tokens, K, ranks,
           threads=threads, shared=shared)
