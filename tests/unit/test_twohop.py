"""Two hops against their definitions: who relays for whom, and where every row and every answer goes."""

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_route import nodes_of, placements

from hpcmoe import array
from hpcmoe.errors import JobError
from hpcmoe.exchange.grid import Grid, Seat, grid
from hpcmoe.exchange.presum import Presum
from hpcmoe.exchange.route import plan_receive, plan_send, trailer_width
from hpcmoe.exchange.route_far import far_width, plan_forward, plan_send_far
from hpcmoe.kernels.combine import combine
from hpcmoe.placement.plan import linear
from hpcmoe.slots import Placement
from hpcmoe.types import Hops, SendPlan


def relay_of(nodes, source: int, node: int) -> int:
    """The rank of `node` with the place that the source has in its own, modulo the size."""
    place = [r for r in range(len(nodes)) if nodes[r] == nodes[source]].index(source)
    there = [r for r in range(len(nodes)) if nodes[r] == node]
    return there[place % len(there)]


@given(st.integers(1, 12).flatmap(nodes_of))
def test_relays_are_the_ranks_of_the_same_place(nodes):
    """And a rail holds all whom they connect."""
    found, R, N = grid(nodes), len(nodes), max(nodes) + 1
    assert found.nodes == N and found.relay.tolist() == [[relay_of(nodes, s, m) for m in range(N)] for s in range(R)]
    group = {r: {r} for r in range(R)}
    for s in range(R):
        for m in range(N):
            both = group[s] | group[relay_of(nodes, s, m)]
            group.update(dict.fromkeys(both, both))
    for r in range(R):
        seat = Seat(found, r)
        assert set(seat.rail.tolist()) == group[r] and seat.rail[seat.at] == r
        assert seat.members == nodes.count(nodes[r])
        assert seat.through.tolist() == [found.place[relay_of(nodes, s, nodes[r])] for s in range(R)]
    assert found.crowd == max(np.bincount(found.relay[:, m]).max() for m in range(N))


@pytest.mark.parametrize("nodes", [(0,) * 4 + (1,) * 4, (0, 1, 2) * 3, (0,), tuple(range(5))])
def test_rails_of_even_nodes_are_their_places(nodes):
    found = grid(nodes)
    assert (found.rail == found.place).all() and found.crowd == found.nodes


@dataclass(frozen=True)
class Case:
    """The slots `[T, K]` and weights of each rank's tokens."""

    placement: Placement
    nodes: tuple[int, ...]
    slots: list[np.ndarray]
    weights: list[np.ndarray]


@st.composite
def cases(draw) -> Case:
    """Random; all tokens to the same slots; ranks without any; K up to E."""
    placement = draw(placements())
    E, R = len(placement.copies), placement.ranks
    K = draw(st.sampled_from([1, min(2, E), min(8, E), E]))
    nodes = draw(nodes_of(R))
    rng, skew = np.random.default_rng(draw(st.integers(0, 2**32))), draw(st.booleans())
    slots, weights = [], []
    for _ in range(R):
        T = draw(st.sampled_from([0, 1, 2, 7]))
        expert = np.array([np.arange(K) if skew else rng.permutation(E)[:K] for _ in range(T)], int).reshape(T, K)
        replica = 0 if skew else rng.integers(0, 1 << 30, (T, K)) % placement.copies[expert]
        slots.append(placement.slots[expert, replica].astype(np.int32))
        weights.append(rng.random((T, K), np.float32))
    return Case(placement, nodes, slots, weights)


def sends(case: Case, found: Grid, presum: bool) -> list[SendPlan]:
    """Of each source."""
    return [plan_send_far(slot, weight if presum else None, case.placement, found, me)
            for me, (slot, weight) in enumerate(zip(case.slots, case.weights))]


def cut(rows: list, counts: np.ndarray) -> list[list]:
    """The block of each rank."""
    assert len(rows) == counts.sum()
    return [rows[a:b] for a, b in pairwise(np.cumsum([0, *counts]).tolist())]


@given(cases(), st.booleans())
def test_a_token_leaves_once_for_each_node(case, presum):
    found = grid(case.nodes)
    width = trailer_width(case.placement.most, case.slots[0].shape[1])
    for me, plan in enumerate(sends(case, found, presum)):
        rank = case.placement.rank[case.slots[me]]
        want = sorted({(relay_of(case.nodes, me, case.nodes[r]), t) for t, row in enumerate(rank) for r in row})
        assert [(q, t) for q, part in enumerate(cut(plan.token.tolist(), plan.counts)) for t in part] == want
        flat = plan_send(case.slots[me], case.placement, width)
        assert (plan.behind[0] == flat.counts).all() and (plan.behind[1] == flat.home_counts).all()


@settings(deadline=None)
@given(cases(), st.booleans())
def test_every_row_and_every_answer_go_where_a_flat_exchange_takes_them(case, presum):
    """All ranks of both ways by hand: rows and answers are tuples that say what they are."""
    found, R, K = grid(case.nodes), len(case.nodes), case.slots[0].shape[1]
    seats, members = [Seat(found, r) for r in range(R)], [np.flatnonzero(found.node == m) for m in found.node]
    plans, width = sends(case, found, presum), trailer_width(case.placement.most, K)
    flat = [plan_send(slot, case.placement, width) for slot in case.slots]

    first = [cut([(s, *row) for row in zip(p.token.tolist(), p.trailer)], p.counts) for s, p in enumerate(plans)]
    forwards, handed = [], []
    for q, seat in enumerate(seats):
        assert not any(first[s][q] for s in range(R) if s not in seat.rail)
        rows = [row for s in seat.rail for row in first[s][q]]
        trailer = np.array([row[2] for row in rows], np.int16).reshape(len(rows), far_width(K, presum))
        forwards.append(plan_forward(trailer, np.array([len(first[s][q]) for s in seat.rail]), seat, K))
        hand = forwards[q].hand
        handed.append(cut([(*rows[n][:2], behind.tolist()) for n, behind in zip(hand.token, hand.trailer)],
                          hand.counts))

    answers = []
    for r, seat in enumerate(seats):
        arrived = [row for q in members[r] for row in handed[q][seat.place]]
        landing = seat.weave(np.array([plan.behind[0][r] for plan in plans]))
        arrived = [arrived[n] for n in (range(len(arrived)) if landing.place is None else landing.place)]
        sent = [cut(list(zip([s] * len(p.token), p.token.tolist(), p.trailer.tolist())), p.counts)[r]
                for s, p in enumerate(flat)]
        want = [row for block in sent for row in block]
        assert [row[:2] for row in arrived] == [row[:2] for row in want]
        assert landing.counts.tolist() == [len(block) for block in sent]
        held = len(case.placement.held_by(r))
        trailer = np.array([row[2] for row in arrived], np.int16).reshape(len(arrived), far_width(K, presum))
        plan = plan_receive(landing.counts, trailer, held)
        of_flat = plan_receive(landing.counts, np.array([row[2] for row in want], np.int16).reshape(
            len(want), width), held)
        for name in ("row", "place", "slot_counts", "home_counts"):
            assert (getattr(plan, name) == getattr(of_flat, name)).all(), name
        computed = [None] * len(plan.row)
        for n, place, slot in zip(plan.row, plan.place, np.repeat(np.arange(held), plan.slot_counts)):
            computed[place] = (*arrived[n][:2], int(case.placement.first[r] + slot))
        layout = seat.weave(plan.home_counts)
        room = [None] * layout.rows
        for n, answer in zip(range(layout.rows) if layout.place is None else layout.place, computed):
            room[n] = answer
        answers.append(cut(room, seat.by_relay(plan.home_counts)))

    home = [[[] for _ in range(R)] for _ in range(R)]
    for q, seat in enumerate(seats):
        assert [len(answers[r][seat.place]) for r in members[q]] == forwards[q].hand.home_counts.tolist()
        gathered = [answer for r in members[q] for answer in answers[r][seat.place]]
        if presum:
            ready = [[(*gathered[n], float(w)) for n, w in zip(*both) if n >= 0]
                     for both in zip(forwards[q].home, forwards[q].weight)]
        else:
            ready = [gathered[n] for n in forwards[q].hand.home]
        for s, block in zip(seat.rail, cut(ready, forwards[q].counts if presum else forwards[q].answers)):
            home[s][q] = block

    for s, (plan, slot) in enumerate(zip(plans, case.slots)):
        assert [len(block) for block in home[s]] == plan.home_counts.tolist()
        came = [answer for block in home[s] for answer in block]
        node = found.node[case.placement.rank[slot]]
        for t in range(len(slot)):
            if presum:
                want = [[(s, t, g, float(w)) for g, w, m in zip(slot[t], case.weights[s][t], node[t]) if m == at]
                        for at in sorted(set(node[t]))]
                assert [came[n] for n in plan.home[t] if n >= 0] == want
                there = (plan.home[t] >= 0).tolist()
                assert there == sorted(there, reverse=True)
            else:
                assert [came[n] for n in plan.home[t]] == [(s, t, g) for g in slot[t]]


@pytest.mark.parametrize("nodes, flat, far", [((0,) * 8 + (1,) * 8, 4.0, 1.0), (tuple(range(4)) * 4, 6.0, 2.88)])
def test_rows_between_nodes_under_uniform_routing(nodes, flat, far):
    """16 experts on 16 ranks, K = 8, by rows for each token; 3 * (1 - C(12, 8) / C(16, 8)) = 2.88 on four nodes."""
    T, K, R, placement, found = 4000, 8, 16, linear(16, 16), grid(nodes)
    rng, other = np.random.default_rng(1), np.array(nodes) != nodes[3]
    slot = rng.random((T, R)).argsort(axis=1)[:, :K].astype(np.int32)
    plan, summed = (plan_send_far(slot, w, placement, found, 3) for w in (None, np.ones(slot.shape, np.float32)))
    one = plan_send(slot, placement, 0)
    per_token = [counts[other].sum() / T for counts in (one.counts, plan.counts, plan.home_counts, summed.home_counts)]
    assert np.allclose(per_token, [flat, far, flat, far], rtol=0.02)
    assert math.isclose(3 * (1 - math.comb(12, 8) / math.comb(16, 8)), 2.88, abs_tol=5e-3)


def test_more_slots_than_a_trailer_can_tell_are_an_error():
    with pytest.raises(JobError, match="32 slots"):
        plan_send_far(np.zeros((1, 1), np.int32), None, linear(32, 1), grid((0,) * 1024), 0)


ROWS = st.sampled_from(["bfloat16", "float32"])


@given(cases(), ROWS, st.booleans(), st.integers(0, 2**32))
def test_sums_of_nodes_are_rounded_where_they_say_and_stay_within_their_bound(case, dtype, round_each, seed):
    """Against NumPy, one token after another; the bound is `Presum`'s."""
    kind, H, me = array.DTYPES[dtype], 5, 0
    slot, weight, found = case.slots[me], case.weights[me], grid(case.nodes)
    T, K = slot.shape
    rng = np.random.default_rng(seed)
    answers = rng.standard_normal((T * K, H)) * 10.0 ** rng.integers(-3, 3, (T * K, 1))
    answers = answers.astype(np.float32).astype(kind)
    at = np.arange(T * K, dtype=np.int32).reshape(T, K)
    node, presum = found.node[case.placement.rank[slot]], Presum(kind, round_each)
    plan = plan_send_far(slot, weight, case.placement, found, me)
    came = np.zeros((len(plan.token), H), kind)
    row_node = found.node[np.repeat(np.arange(len(case.nodes)), plan.counts)]
    presum.sum(answers.view(np.uint16), np.where(node[plan.token] == row_node[:, None], at[plan.token], -1),
               weight[plan.token], came.view(np.uint16))
    got = combine(came, plan.home, np.ones(plan.home.shape, np.float32))
    u = 2.0**-8 if dtype == "bfloat16" else 2.0**-24
    for t in range(T):
        total, exact, error = np.zeros(H, np.float32), np.zeros(H), np.zeros(H)
        for m in sorted(set(node[t].tolist())):
            part = np.zeros(H, np.float32)
            for k in np.flatnonzero(node[t] == m):
                product = weight[t, k] * answers[at[t, k]].astype(np.float32)
                part += product.astype(kind).astype(np.float32) if round_each else product
            total += part.astype(kind).astype(np.float32)
            error += u * abs(part)
        assert got[t].tobytes() == total.astype(kind).tobytes()
        products = weight[t, :, None].astype(np.float64) * answers[at[t]].astype(np.float64)
        exact = products.sum(axis=0)
        bound = error + (K + found.nodes) * 2.0**-23 * abs(products).sum(axis=0)
        assert round_each or (abs(total - exact) <= bound).all()


@given(st.lists(st.floats(width=32), min_size=1, max_size=20))
def test_bfloat16_is_rounded_alike_where_there_is_no_type_for_it(values):
    """As on a GPU; NaN stays NaN."""
    x = np.array(values, np.float32)
    with np.errstate(over="ignore"):
        got, want = array._rounded(x), array.narrow(x)
    assert (np.where(np.isnan(x), 0, got) == np.where(np.isnan(x), 0, want)).all()
    assert (np.isnan(array.widen(got)) == np.isnan(x)).all()


def test_the_table_of_hops_decides_between_its_measurements_by_both():
    table = Hops(np.array([1, 4, 16]), np.array([1.0, 1.0, 4.0]), np.array([2.0, 1.0, 1.0]))
    assert [table.pays(rows) for rows in (0, 1, 3, 5, 16, 1000)] == [False, False, False, True, True, True]
    one = Hops(np.array([1]), np.array([2.0]), np.array([1.0]))
    assert one.pays(0) and one.pays(7)
