"""The choice of experts, and the order of the rows that leave; gate.cu. Twins: `kernels.gate`, `exchange.route`."""

from dataclasses import dataclass

import cupy
import numpy as np

from hpcmoe.device.cuda import THREADS, launch, pinned
from hpcmoe.device.scratch import TILE
from hpcmoe.slots import Placement
from hpcmoe.spec import Moe
from hpcmoe.types import SAMPLED

SCORES = ("softmax", "sigmoid", "softmax_of_chosen")
PER_LANE = (8, 32, 128)
"""Experts that a lane of `choose` holds, as kernels in gate.cu."""
MOST_EXPERTS = 32 * PER_LANE[-1]
SUMMERS = 16
"""Warps that share the tiles of `sum_tiles`."""
MOST_LAID = 1024
"""Threads of a block at most."""
MOST_SHARED = 128 * 1024
"""Bytes of shared memory of a block of `place`, about: any GPU with bfloat16 has more."""


@dataclass(frozen=True)
class Route:
    """Where a micro-batch's tokens go; room for T of them, of which the first ones count."""

    expert: cupy.ndarray
    """`[T, K]` int32; their slots, where experts have replicas"""
    weight: cupy.ndarray
    """`[T, K]` float32"""
    rank: cupy.ndarray
    """`[T, K]` int32: of the expert; of its t shards `[T, K * t]`, and so the next two"""
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

    @property
    def shards(self) -> int:
        """t"""
        return self.home.shape[1] // self.weight.shape[1]


def make_route(tokens: int, top_k: int, ranks: int, shards: int = 1) -> Route:
    """Room for micro-batches of so many tokens."""
    expert = cupy.empty((tokens, top_k), np.int32)
    rank, row, home = (cupy.empty((tokens, top_k * shards), np.int32) for _ in range(3))
    tiles = cupy.empty((2, max(1, -(-tokens // TILE)), ranks), np.int32)
    return Route(expert, cupy.empty((tokens, top_k), np.float32), rank, row, home, (tiles[0], tiles[1]),
                 pinned(ranks, np.int64), pinned(ranks, np.int64))


@dataclass(frozen=True)
class Replicas:
    """Which slots an expert's rows go to."""

    itself: cupy.ndarray
    """`[E]` int32: 0, 1, 2, …"""
    copies: cupy.ndarray
    """`[E]` int32"""
    near: cupy.ndarray
    """`[E, C]` int32: as in `exchange.replicas.Near`"""


@dataclass(frozen=True)
class Map:
    """A placement on the device: where what a token chose is. That is a slot where experts have replicas; else, as n
    is then E, the expert itself."""

    rank: cupy.ndarray
    """`[n]` int32"""
    local: cupy.ndarray
    """`[n]` int16: the slot on that rank"""
    replicas: Replicas | None


def make_map(placement: Placement, near: np.ndarray) -> Map:
    """Of the experts of one layer; near `[E, C]` int32 is that of the rank."""
    slot = np.arange(len(placement.rank)) if placement.replicated else placement.slot
    rank, replicas = placement.rank[slot], None
    if placement.replicated:
        E = len(placement.copies)
        replicas = Replicas(*(cupy.asarray(a.astype(np.int32)) for a in (np.arange(E), placement.copies, near)))
    return Map(cupy.asarray(rank.astype(np.int32)), cupy.asarray((slot - placement.first[rank]).astype(np.int16)),
               replicas)


def choose(moe: Moe, logits: cupy.ndarray, bias: cupy.ndarray | None, route: Route, load: cupy.ndarray,
           sample: cupy.ndarray | None = None, added: cupy.ndarray | None = None) -> None:
    """The top K experts of each token, from logits `[T, E]` float32; load `[E]` uint64 or longer counts them.

    bias `[E]` counts in the choice only, added `[E]` belongs to the logits, both float32.

    sample `[s, K]` int16 gets those of the tokens `types.sampled(T)`, of which there are `s` or fewer.
    """
    T, E = logits.shape
    groups, counted = moe.groups, 1 if moe.group_score == "max" or moe.groups == E else 2
    held = moe.top_k + (E + groups if groups > 1 else 0)
    warps = max(1, min(4, 48 * 1024 // (4 * held)))
    kept, apart = (0, 0) if sample is None else (min(SAMPLED, T), sample.strides[0] // 2)
    launch(f"gate.choose_{next(per for per in PER_LANE if 32 * per >= E)}", -(-T // warps), logits, bias, added,
           route.expert, route.weight, load, T, E, moe.top_k, SCORES.index(moe.score), groups, moe.groups_kept, counted,
           moe.renormalise, moe.round_logits, moe.round_weights, float(moe.scale), sample, kept, apart,
           threads=32 * warps, shared=4 * warps * held)


def count_moved(route: Route, plain: Route, tokens: int, moved: cupy.ndarray) -> None:
    """Adds to moved `[1]` uint64 how many (token, k) of the first `tokens` tokens go to none of the token's experts in
    `plain`."""
    count, K = tokens * route.expert.shape[1], route.expert.shape[1]
    launch("gate.count_moved", -(-count // THREADS), route.expert, plain.expert, moved, count, K, threads=THREADS)


def lay(route: Route, base: cupy.ndarray) -> bool:
    """Where the rows for each rank begin, if they lie without gaps, to base `[R]` int32, behind `order`; False where
    there are too many ranks for it."""
    threads = 1 << max(5, (len(base) - 1).bit_length())
    if threads <= MOST_LAID:
        launch("gate.lay", 1, route.counts, base, len(base), threads=threads, shared=8 * threads)
    return threads <= MOST_LAID


def spread(chosen: Route, replicas: Replicas, tokens: int, route: Route, shares: cupy.ndarray | None = None) -> None:
    """The experts that the first `tokens` tokens chose, `order`ed as if each were a rank, become slots of `route`.

    shares `[E, C]` int32 as in `exchange.replicas`; without them they are even.
    """
    count, C = tokens * chosen.expert.shape[1], replicas.near.shape[1]
    launch("gate.spread", -(-count // THREADS), chosen.expert, chosen.home, chosen.home_counts, shares, replicas.copies,
           replicas.near, route.expert, count, C, threads=THREADS)


def order(route: Route, rank: cupy.ndarray, tokens: int, ranks: int) -> None:
    """Rows and answers of the first `tokens` tokens by (rank, token, k), those of shards on ranks behind `rank`, which
    are as many answers; the counts reach the host behind it."""
    K, shards = route.home.shape[1], route.shards
    tiles, looked_up = -(-tokens // TILE), 2 * TILE * K
    warps = max(1, min(8, MOST_SHARED // (4 * ranks) - 3))
    rows, homes = route.tiles
    launch("gate.count_tiles", tiles, route.expert, rank, rows, homes, tokens, K, ranks, shards,
           shared=8 * ranks + looked_up)
    launch("gate.sum_tiles", (-(-ranks // 32), 2), rows, homes, route.counts, route.home_counts, tiles, ranks,
           threads=32 * min(SUMMERS, max(1, tiles)))
    launch("gate.place", tiles, route.expert, rank, rows, homes, route.rank, route.row, route.home, tokens, K, ranks,
           shards, threads=32 * warps, shared=4 * (2 + warps) * ranks + looked_up)
