"""Which rank holds which expert."""

from collections.abc import Sequence

import numpy as np

from hpcmoe.slots import Placement, Placements, fullest


def linear(experts: int, ranks: int) -> Placement:
    """Experts in order over the ranks, as even as can be.

    One slot per rank where E = R. Where E > R, slots per rank differ by at most one. Where E < R, the spare
    ranks lie evenly between the others; they serve sequences.
    """
    rank = np.arange(experts) * ranks // experts
    return Placement(ranks, rank.astype(np.int32), np.arange(experts, dtype=np.int32))


def repeated(experts: int, ranks: int) -> Placement:
    """A slot on each of more ranks than experts: the next ranks to that of an expert hold replicas of it."""
    rank = np.arange(ranks, dtype=np.int32)
    return Placement(ranks, rank, (rank.astype(np.int64) * experts // ranks).astype(np.int32))


def inherit(before: Placement, living: Sequence[int]) -> Placement:
    """The placement of the ranks `living`, which are numbered anew, when the others are gone.

    They keep what they hold, in its order; the experts of the others go behind, one after another, each to a rank with
    the fewest.
    """
    held = [before.held_by(rank) for rank in living]
    for expert in sorted(set(before.expert.tolist()).difference(*held)):
        min(held, key=len).append(expert)
    rank = np.repeat(np.arange(len(held)), [len(experts) for experts in held])
    return Placement(len(held), rank.astype(np.int32), np.array([e for experts in held for e in experts], np.int32))


def with_spare(placements: Placements) -> Placements:
    """The placements for which there must be room on each rank, if any one may die."""
    gone = fullest(placements)
    return [inherit(placement, [rank for rank in range(placement.ranks) if rank != gone]) for placement in placements]
