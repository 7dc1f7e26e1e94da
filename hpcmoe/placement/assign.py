"""Slots to ranks by what each costs on each rank: the slowest rank as quick as can be."""

import numpy as np

from hpcmoe.placement.replicas import SAME, pack
from hpcmoe.placement.solve import assignment, is_feasible
from hpcmoe.slots import Placement

ROUNDS = 400
"""Swaps and moves that relieve the slowest rank, at most, from each start."""
WORK = 1 << 18
"""Slots times starts of searches, in all problems of a plan together; a search begins anew from the best so far,
shaken."""
FEWEST, MOST = 4, 64
"""Starts of a search, at least and at most."""


def ordered(ranks: int, rank: np.ndarray, expert: np.ndarray) -> Placement:
    """A placement with these slots, rank and expert `[S]` integers, in any order."""
    order = np.lexsort((expert, rank))
    return Placement(ranks, rank[order].astype(np.int32), expert[order].astype(np.int32))


def assign(cost: np.ndarray, expert: np.ndarray, capacity: int, problems: int, seed: tuple[int, int]) -> np.ndarray:
    """`[S]` int64: the rank of each slot. No rank gets more than `capacity`, nor an expert twice.

    cost `[S, R]` float64: seconds; expert `[S]`: of each slot; problems: how many a plan has. Where a rank holds one
    slot the slowest rank is as quick as any assignment makes it, and the sum is the least with that; else a search
    finds what it can.
    """
    if capacity == 1:
        return exact(cost)
    rank = relieve(cost, expert, pack(cost.mean(axis=1), expert, cost.shape[1], capacity), capacity)
    draw = np.random.default_rng(seed)
    for _ in range(int(np.clip(WORK // (len(expert) * problems), FEWEST, MOST)) - 1):
        other = relieve(cost, expert, _shaken(expert, rank, draw), capacity)
        if slowest(cost, other) < slowest(cost, rank) * (1 - SAME):
            rank = other
    return rank


def slowest(cost: np.ndarray, rank: np.ndarray) -> float:
    """Seconds of the slowest rank."""
    return float(loads(cost, rank).max())


def loads(cost: np.ndarray, rank: np.ndarray) -> np.ndarray:
    """`[R]` float64: seconds of each rank."""
    return np.bincount(rank, cost[np.arange(len(rank)), rank], minlength=cost.shape[1])


def exact(cost: np.ndarray) -> np.ndarray:
    """`[S]` int64: a rank for each slot, no rank twice: the largest cost as small as can be, then the least sum."""
    return assignment(np.where(cost <= bottleneck(cost), cost, np.inf))


def bottleneck(cost: np.ndarray) -> float:
    """The smallest number that the largest cost of an assignment can be."""
    least = max(cost.min(axis=1).max(), np.partition(cost.min(axis=0), len(cost) - 1)[len(cost) - 1])
    steps = np.unique(cost[cost >= least])
    low, high = 0, len(steps) - 1
    while low < high:
        middle = (low + high) // 2 if low else 0  # most often the first will do
        if is_feasible(cost <= steps[middle]):
            high = middle
        else:
            low = middle + 1
    return float(steps[low])


def relieve(cost: np.ndarray, expert: np.ndarray, rank: np.ndarray, capacity: int) -> np.ndarray:
    """A better `rank` `[S]`: as long as one swap with another rank, or one move there, makes the slowest rank quicker
    and the other one no slower than it was, the best of them is done."""
    rank, slots = rank.copy(), np.arange(len(rank))
    held = np.zeros((cost.shape[1], int(expert.max()) + 1), bool)
    held[rank, expert] = True
    load, count = loads(cost, rank), np.bincount(rank, minlength=cost.shape[1])
    for _ in range(ROUNDS):
        worst = int(load.argmax())
        mine, others = np.flatnonzero(rank == worst), slots[rank != worst]
        its, e, f = rank[others], expert[mine][:, None], expert[others][None]
        lighter = load[worst] - cost[mine, worst][:, None]
        swap = np.maximum(lighter + cost[others, worst], (load[its] - cost[others, its]) + cost[np.ix_(mine, its)])
        swap[(e == f) | held[its[None], e] | held[worst][f]] = np.inf
        move = np.maximum(lighter, load + cost[mine])
        move[:, count >= capacity] = np.inf
        move[held[:, expert[mine]].T] = np.inf
        best = min(swap.min(initial=np.inf), move.min(initial=np.inf))
        if not best < load[worst] * (1 - SAME):
            break
        if move.min(initial=np.inf) <= best:
            a, to = np.unravel_index(move.argmin(), move.shape)
            changes = [(mine[a], int(to))]
        else:
            a, b = np.unravel_index(swap.argmin(), swap.shape)
            changes = [(mine[a], int(its[b])), (others[b], worst)]
        for slot, _ in changes:
            held[rank[slot], expert[slot]] = False
        for slot, to in changes:
            rank[slot], held[to, expert[slot]] = to, True
        load, count = loads(cost, rank), np.bincount(rank, minlength=cost.shape[1])
    return rank


def _shaken(expert: np.ndarray, rank: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """With some slots swapped, where both ranks may."""
    rank, held = rank.copy(), set(zip(rank.tolist(), expert.tolist()))
    for a, b in draw.integers(len(rank), size=(2 + len(rank) // 8, 2)).tolist():
        here, there = (int(rank[a]), int(expert[a])), (int(rank[b]), int(expert[b]))
        if here[0] != there[0] and here[1] != there[1] and not {(here[0], there[1]), (there[0], here[1])} & held:
            held -= {here, there}
            held |= {(here[0], there[1]), (there[0], here[1])}
            rank[a], rank[b] = there[0], here[0]
    return rank
