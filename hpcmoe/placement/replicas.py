"""How many replicas each expert gets, and which rank takes which slot when only rows count."""

from collections.abc import Iterator

import numpy as np

TRIED = 32
"""Numbers of replicas that are tried at most."""
SAME = 1e-9
"""Times that differ by this part of them are the same."""


def apportion(rows: np.ndarray, copies: np.ndarray, slots: int, most: int) -> np.ndarray:
    """`[E]` int64: how many slots each expert gets, `slots` in all: the next one is for whom it relieves the most.

    rows, copies `[E]`: what each has to begin with; no expert gets more than `most`, one for each rank. That is Adams'
    rule, by which EPLB (github.com/deepseek-ai/EPLB) replicates: no other numbers make the largest rows / slots less.
    """
    copies = copies.copy()
    for _ in range(slots - copies.sum()):
        copies[np.where(copies < most, rows / copies, -1).argmax()] += 1
    return copies


def numbers(experts: int, ranks: int, capacity: int) -> Iterator[int]:
    """Numbers of slots to try: from one for each expert to all that there is room for."""
    spare = min(capacity * ranks, experts * ranks) - experts
    yield from dict.fromkeys(experts + spare * step // TRIED for step in range(TRIED + 1))


def scan(rows: np.ndarray, ranks: int, capacity: int) -> tuple[np.ndarray, np.ndarray]:
    """The slots `[S]` that make the fullest rank's rows fewest, packed: (rank, expert) of each.

    More replicas are not always better; where they are not, fewer are taken.
    """
    best, found, copies = np.inf, None, np.ones(len(rows), np.int64)
    for slots in numbers(len(rows), ranks, capacity):
        copies = apportion(rows, copies, slots, ranks)
        each = rows / copies
        if max(each.max(), rows.sum() / ranks) >= best * (1 - SAME):  # no packing could be better
            continue
        expert = np.repeat(np.arange(len(rows)), copies)
        rank = pack(each[expert], expert, ranks, capacity)
        fullest = np.bincount(rank, each[expert], minlength=ranks).max()
        if fullest < best * (1 - SAME):
            best, found = fullest, (rank, expert)
    assert found is not None, "the first number of slots is packed"
    return found


def pack(rows: np.ndarray, expert: np.ndarray, ranks: int, capacity: int) -> np.ndarray:
    """`[S]` int64: the rank of each slot. The heaviest first, each to the rank with the fewest rows so far that has
    room and not this expert.

    rows, expert `[S]`: of each slot. `capacity` · R ≥ S, and no expert has more slots than there are ranks.
    """
    held = np.zeros((ranks, int(expert.max()) + 1), bool)
    load, room, rank = np.zeros(ranks), np.full(ranks, capacity), np.full(len(rows), -1)
    for slot in np.argsort(-rows, kind="stable").tolist():
        free = (room > 0) & ~held[:, expert[slot]]
        if free.any():
            puts = [(slot, int(np.where(free, load, np.inf).argmin()))]
        else:
            puts = _make_way(slot, expert, rank, held, room)
        for one, to in puts:
            if rank[one] >= 0:
                held[rank[one], expert[one]] = False
                load[rank[one]] -= rows[one]
                room[rank[one]] += 1
            rank[one], held[to, expert[one]] = to, True
            load[to] += rows[one]
            room[to] -= 1
    return rank


def _make_way(slot: int, expert: np.ndarray, rank: np.ndarray, held: np.ndarray,
              room: np.ndarray) -> list[tuple[int, int]]:
    """What to put where when all ranks with room have the slot's expert already: another rank gives one of its slots to
    such a rank, and takes this one.

    One of its slots will do: it is full, so it has more experts than a rank with room has beside this one.
    """
    to, full = int((room > 0).argmax()), int((~held[:, expert[slot]]).argmax())
    return [(next(s for s in np.flatnonzero(rank == full).tolist() if not held[to, expert[s]]), to), (slot, full)]
