"""Which replica rows go to, against the definition and an exact flow."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_route import nodes_of, placements

from hpcmoe.exchange.replicas import even, exact, near, spread
from hpcmoe.placement.plan import linear
from hpcmoe.slots import Placement


def distance(placement: Placement, nodes, me: int, slot: int) -> int:
    rank = placement.rank[slot]
    return 0 if rank == me else 1 if nodes[rank] == nodes[me] else 2


@given(placements(), st.data())
def test_near_lists_all_replicas_by_distance(placement, data):
    nodes = data.draw(nodes_of(placement.ranks))
    for me in range(placement.ranks):
        for e, slots in enumerate(near(placement, nodes, me).slot.tolist()):
            found = [slot for slot in slots if slot >= 0]
            assert sorted(found) == np.flatnonzero(placement.expert == e).tolist()
            assert slots[:len(found)] == found
            far = [distance(placement, nodes, me, slot) for slot in found]
            assert far == sorted(far)


@given(placements(), st.data())
def test_rows_are_shared_evenly_and_the_nearest_take_the_odd_ones(placement, data):
    nodes, E = data.draw(nodes_of(placement.ranks)), len(placement.copies)
    me = data.draw(st.integers(0, placement.ranks - 1))
    T, K = data.draw(st.integers(0, 40)), data.draw(st.integers(1, min(E, 4)))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    expert = np.argsort(rng.random((T, E)), axis=1)[:, :K].astype(np.int32)
    counts, to = np.bincount(expert.ravel(), minlength=E), near(placement, nodes, me)
    slot = spread(expert, to, even(counts, placement))
    assert (placement.expert[slot] == expert).all()
    for e in range(E):
        replicas = [s for s in to.slot[e].tolist() if s >= 0]
        got = [int((slot == s).sum()) for s in replicas]
        assert sum(got) == counts[e] and got == sorted(got, reverse=True) and got[0] - got[-1] <= 1


@pytest.mark.parametrize("shards", [1, 2, 3])
def test_odd_rows_of_many_ranks_do_not_meet(shards):
    """Each of 12 ranks, or groups, has one row for an expert with three replicas on other nodes: four for each."""
    placement = Placement(15, np.array([12, 13, 14], np.int32), np.zeros(3, np.int32)).cut(shards)
    nodes = np.repeat((*range(12), 12, 12, 12), shards).tolist()
    shares = even(np.array([1]), placement)
    rows = sum(np.bincount(spread(np.zeros((1, 1), np.int32), near(placement, nodes, me), shares)[0], minlength=3)
               for me in range(12 * shards))
    assert rows.tolist() == [4 * shards] * 3


def test_without_replicas_there_is_one_way():
    placement, expert = linear(6, 3), np.array([[5, 0], [2, 3]], np.int32)
    to = near(placement, (0, 0, 0), 1)
    counts = np.bincount(expert.ravel(), minlength=6)
    assert spread(expert, to, even(counts, placement)).tolist() == [[5, 0], [2, 3]]


def most_that_stays(counts, placement: Placement, nodes, e: int) -> tuple[int, int]:
    """Rows of expert `e` that can stay on their rank, and on their node, at a bound of ceil(n / c) a replica: by a flow
    of least cost."""
    from scipy.optimize import linprog
    slots = np.flatnonzero(placement.expert == e)
    n, c, R = counts[:, e], len(slots), placement.ranks
    cost = np.array([[(0, 1, 1000)[distance(placement, nodes, s, slot)] for slot in slots] for s in range(R)])
    give = np.kron(np.eye(R), np.ones(c))
    take = np.kron(np.ones(R), np.eye(c))
    found = linprog(cost.ravel(), A_ub=take, b_ub=np.full(c, -(-n.sum() // c)), A_eq=give, b_eq=n, method="highs")
    flow = found.x.reshape(R, c).round().astype(int)
    return int(flow[cost == 0].sum()), int(flow[cost <= 1].sum())


@given(placements(6, 7), st.data())
def test_exact_shares_reach_the_bound_and_keep_the_most_rows_near(placement, data):
    nodes, R, E = data.draw(nodes_of(placement.ranks)), placement.ranks, len(placement.copies)
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    counts = rng.integers(0, data.draw(st.sampled_from([1, 2, 9, 100])), (R, E)) * rng.integers(0, 2, (R, 1))
    sees = [near(placement, nodes, me) for me in range(R)]
    shares = [exact(counts, placement, nodes, me, to) for me, to in enumerate(sees)]
    rows = np.zeros((R, len(placement.rank)), int)  # [source, slot]
    for me, (to, share) in enumerate(zip(sees, shares)):
        assert (share >= 0).all() and (share.sum(axis=1) == counts[me]).all() and not share[to.slot < 0].any()
        rows[me, to.slot[to.slot >= 0]] = share[to.slot >= 0]
    bound = -(-counts.sum(axis=0) // placement.copies)
    assert (rows.sum(axis=0) <= bound[placement.expert]).all()
    for e in range(E):
        of = [(distance(placement, nodes, s, slot), rows[s, slot])
              for s in range(R) for slot in np.flatnonzero(placement.expert == e)]
        stays = sum(n for far, n in of if far == 0), sum(n for far, n in of if far <= 1)
        assert stays == most_that_stays(counts, placement, nodes, e)
