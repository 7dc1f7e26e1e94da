"""Other experts in some of the slots of a placement, as the load moves: replicas for those that are busy now."""

from collections.abc import Iterator

import numpy as np

from hpcmoe.placement.replicas import SAME, apportion, pack
from hpcmoe.slots import Placement

GAIN = 0.02
"""Slots are changed where the fullest rank then has fewer rows by this part: an expert has to be read for each."""
ANEW = 0.05
"""And nearly all of them where that saves such a part of what is left."""


def adapted(now: Placement, rows: np.ndarray) -> Placement:
    """`now` with other experts in some slots, so that the fullest rank has fewer rows; `now` itself where little is
    gained. The same input gives the same placement.

    rows `[E]`: of each expert. Every rank keeps its number of slots. As long as one change relieves the fullest rank
    and makes no other one as full, the best of them is done: one of its experts gets a replica in a slot elsewhere, or
    one of its own slots gets another expert, where what the slot had has another replica; or two slots swap. Where
    ranks have several slots, a placement made anew is looked at, too.
    With one slot on each rank no other numbers of replicas would make the fullest rank's rows fewer: if some did, the
    fullest rank's expert would have more there, another expert fewer, and that change is one of those looked at.
    """
    found = _climbed(now, rows)
    if now.most > 1 and now.most * now.ranks == len(now.rank):  # else there is nothing that single changes miss
        other = _climbed(_anew(now, rows), rows)
        if loads(other, rows).max() < loads(found, rows).max() * (1 - ANEW):
            found = other
    return found if loads(found, rows).max() < loads(now, rows).max() * (1 - GAIN) else now


def _climbed(now: Placement, rows: np.ndarray) -> Placement:
    """`now` with the best changes for the fullest rank, one after another."""
    full = loads(now, rows)
    for _ in range(len(now.rank)):
        best, changes = min(_changes(now, rows, full), key=lambda change: change[0], default=(np.inf, {}))
        if best >= full.max() * (1 - SAME):
            break
        expert = now.expert.copy()
        expert[list(changes)] = list(changes.values())
        now = Placement(now.ranks, now.rank, expert)
        full = loads(now, rows)
    return now


def _anew(now: Placement, rows: np.ndarray) -> Placement:
    """The heaviest slot first to the rank with the fewest rows, all slots filled; then those ranks' numbers, and the
    order of their slots, so that much of `now` stays where it is."""
    copies = apportion(rows, np.ones(len(rows), np.int64), len(now.rank), now.ranks)
    expert = np.repeat(np.arange(len(rows)), copies)
    rank = pack((rows / copies)[expert], expert, now.ranks, now.most)
    held = _held(now)
    common = np.zeros((now.ranks, now.ranks), np.int64)  # [their numbers there, here]
    np.add.at(common, rank, held[:, expert].T)
    number: dict[int, int] = {}
    taken: set[int] = set()
    some = np.flatnonzero(common)
    rest = np.setdiff1d(np.arange(common.size), some)  # whoever is left over gets the next one
    for pair in (*some[np.argsort(-common.flat[some], kind="stable")].tolist(), *rest.tolist()):
        there, here = divmod(pair, now.ranks)
        if there not in number and here not in taken:
            number[there] = here
            taken.add(here)
    result = now.expert.copy()
    for there, here in number.items():
        slots, wanted = slice(now.first[here], now.first[here + 1]), expert[rank == there]
        gone = ~np.isin(now.expert[slots], wanted)
        result[slots][gone] = np.setdiff1d(wanted, now.expert[slots])
    return Placement(now.ranks, now.rank, result)


def loads(placement: Placement, rows: np.ndarray) -> np.ndarray:
    """`[R]` float64: rows that each rank computes; rows `[E]`."""
    each = rows / placement.copies.clip(1)
    return np.bincount(placement.rank, each[placement.expert], minlength=placement.ranks)


def uneven(full: np.ndarray) -> float:
    """(max − mean) / mean of rows of ranks `[R]`."""
    return float(full.max() / full.mean() - 1) if full.any() else 0.0


def _changes(now: Placement, rows: np.ndarray, full: np.ndarray) -> Iterator[tuple[float, dict[int, int]]]:
    """(rows of the fullest of the ranks that it touches, slots and their new experts) of the best changes for the
    fullest rank: by each of its experts, and by each of its slots."""
    worst, copies, held = int(full.argmax()), now.copies, _held(now)
    each, fewer, more = rows / copies.clip(1), rows / (copies - 1).clip(1), rows / (copies + 1)
    mine, here, there = now.expert[now.first[worst]:now.first[worst + 1]], each[now.expert], full[now.rank]
    left = np.where(copies[now.expert] > 1, _others(now, full) + (fewer - each)[now.expert], np.inf)
    """`[S]`: rows of the fullest other rank that has a slot's expert, once the slot has it no more"""
    for expert in mine.tolist():
        relieved = full[worst] - each[expert] + more[expert]
        touched = np.maximum(np.maximum(there - here + more[expert], left), relieved)
        touched[held[now.rank, expert]] = np.inf
        yield float(touched.min()), {int(touched.argmin()): expert}
    for slot, expert in enumerate(mine.tolist(), now.first[worst]):
        replaced = np.maximum(full[worst] - each[expert] + more, left[slot])
        replaced[held[worst]] = np.inf
        yield float(replaced.min()), {slot: int(replaced.argmin())}
        swapped = np.maximum(full[worst] - each[expert] + here, there - here + each[expert])
        swapped[held[worst, now.expert] | held[now.rank, expert]] = np.inf
        to = int(swapped.argmin())
        yield float(swapped[to]), {slot: int(now.expert[to]), to: expert}


def _held(now: Placement) -> np.ndarray:
    """`[R, E]` bool: who has what."""
    held = np.zeros((now.ranks, len(now.copies)), bool)
    held[now.rank, now.expert] = True
    return held


def _others(now: Placement, full: np.ndarray) -> np.ndarray:
    """`[S]`: rows of the fullest other rank that has a slot's expert; -inf where none has."""
    there = np.sort(np.where(now.slots >= 0, full[now.rank[now.slots]], -np.inf), axis=1)  # [E, C]
    first, second = there[now.expert, -1], there[now.expert, -2] if there.shape[1] > 1 else -np.inf
    return np.where(full[now.rank] == first, second, first)
