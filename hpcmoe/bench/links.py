"""Which ranks are measured with which, and when: rounds of pairs of ranks, each rank in one pair at most.

Inside nodes all nodes are busy at once, each with as many pairs as it has: a rank that exchanges rows never has its
node's memory for itself. Between nodes the nodes work in pairs too, and while two of them are measured they have no
other traffic. Of latencies one pair of their ranks at a time is measured (`alone`), for a small message should meet
nobody else. Of rates all their ranks are (`together`), each with another one, as in an exchange, in which all of them
send at once: where they share a network card, a pair's rate is its part of it, which is what a byte costs a rank.

For R ranks on N nodes that are R·(R - R/N)/N rounds of `alone` and R - R/N of `together`, or N - 1 of each where not
every pair is measured: then a pair of nodes is known by its first ranks, or by a pair of each of its ranks.
"""

from collections.abc import Iterable, Sequence
from itertools import chain, zip_longest

import numpy as np

from hpcmoe.slots import members

Round = list[tuple[int, int]]
"""Pairs of ranks that are measured at once."""


def tournament(count: int) -> list[Round]:
    """Rounds in which each two of 0 … count - 1 meet once: count - 1 of them, or count where that is odd.

    The circle method: all but the first seat move on by one from round to round.
    """
    seats = list(range(count)) + [-1] * (count % 2)  # who meets -1 has a rest
    half, rounds = len(seats) // 2, []
    for _ in range(len(seats) - 1):
        rounds.append([pair for pair in zip(seats[:half], reversed(seats[half:])) if -1 not in pair])
        seats = [seats[0], seats[-1], *seats[1:-1]]
    return rounds


def inside(node: Sequence[int]) -> list[Round]:
    """All pairs inside nodes; node `[R]`."""
    return _side_by_side([[(ranks[a], ranks[b]) for a, b in pairs] for pairs in tournament(len(ranks))]
                         for ranks in _ranks(node))


def alone(node: Sequence[int], every: bool) -> list[Round]:
    """Pairs between nodes, of each two nodes one at a time: all, or the first; node `[R]`."""
    return list(chain(*(_side_by_side([[pair] for pair in chain(*_turns(some, every))][:None if every else 1]
                                      for some in meetings) for meetings in _meetings(node))))


def together(node: Sequence[int], every: bool) -> list[Round]:
    """Pairs between nodes, of each two nodes as many at once as they have: all, or one of each rank; node `[R]`."""
    return list(chain(*(_side_by_side(_turns(some, every) for some in meetings) for meetings in _meetings(node))))


def _meetings(node: Sequence[int]) -> list[list[tuple[list[int], list[int]]]]:
    """Rounds of pairs of nodes; each node is its ranks, and the smaller one comes first."""
    ranks = _ranks(node)
    return [[(ranks[a], ranks[b]) if len(ranks[a]) <= len(ranks[b]) else (ranks[b], ranks[a]) for a, b in pairs]
            for pairs in tournament(len(ranks))]


def _turns(nodes: tuple[list[int], list[int]], every: bool) -> list[Round]:
    """Rounds in which each rank of the first node meets another one of the second: all of them, or one."""
    few, many = nodes
    return [[(rank, many[(place + turn) % len(many)]) for place, rank in enumerate(few)]
            for turn in range(len(many) if every else 1)]


def _side_by_side(parallel: Iterable[list[Round]]) -> list[Round]:
    """Several lists of rounds as one, whose rounds have all pairs of theirs; none is empty."""
    merged = (list(chain(*rounds)) for rounds in zip_longest(*parallel, fillvalue=[]))
    return [pairs for pairs in merged if pairs]


def _ranks(node: Sequence[int]) -> list[list[int]]:
    return [ranks.tolist() for ranks in members(node)]


def spread(node: Sequence[int], found: np.ndarray) -> np.ndarray:
    """`[R, R]`: what was not measured, NaN in `found`, is the median of what was from and to the same nodes."""
    whole, ranks = found.copy(), _ranks(node)
    for source in ranks:
        for target in ranks:
            block = found[np.ix_(source, target)]
            missing = np.isnan(block)
            if missing.any():
                whole[np.ix_(source, target)] = np.where(missing, np.median(block[~missing]), block)
    return whole
