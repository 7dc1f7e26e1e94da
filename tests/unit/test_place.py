"""The parts of the planner, each against something slow and obvious."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from routes import KINDS, WEIGHTS, counted, node_rows, nodes, trace, zipf

from hpcmoe.placement import assign, cost, demand, replicas, touch
from hpcmoe.placement.assign import ordered
from hpcmoe.placement.demand import Spread
from hpcmoe.placement.even import Price, busy
from hpcmoe.placement.group import Room
from hpcmoe.placement.starts import grown, spectral
from hpcmoe.placement.topology import dealt
from hpcmoe.slots import Placement, Routing


def slots(draw, experts: int, ranks: int, capacity: int) -> Placement:
    """Any placement."""
    spare = int(draw.integers(0, max(min(capacity * ranks, experts * ranks) - experts, 0) + 1))
    copies = replicas.apportion(draw.random(experts), np.ones(experts, np.int64), experts + spare, ranks)
    expert = np.repeat(np.arange(experts), copies)
    return ordered(ranks, replicas.pack(draw.random(len(expert)), expert, ranks, capacity), expert)


def is_valid(placement: Placement, experts: int, capacity: int) -> bool:
    """All experts, none twice on a rank, no rank too full, in order."""
    pairs = list(zip(placement.rank.tolist(), placement.expert.tolist()))
    return (set(placement.expert.tolist()) == set(range(experts)) and len(set(pairs)) == len(pairs)
            and pairs == sorted(pairs) and placement.most <= capacity)


@settings(deadline=None)
@given(st.integers(1, 9), st.integers(1, 6), st.integers(1, 4), st.integers(0, 999))
def test_slots_are_packed_whatever_their_shape(experts, ranks, more, seed):
    draw, capacity = np.random.default_rng(seed), -(-experts // ranks) + more - 1
    assert is_valid(slots(draw, experts, ranks, capacity), experts, capacity)


def test_a_rank_makes_way_where_only_ranks_with_the_expert_have_room():
    rows = np.array([10, 3, 2, 1, 0.5, 0.5])
    found = replicas.pack(rows, np.array([0, 1, 2, 3, 4, 4]), 2, 3)
    assert is_valid(ordered(2, found, np.array([0, 1, 2, 3, 4, 4])), 5, 3)


@given(st.lists(st.integers(0, 30), min_size=1, max_size=4), st.integers(0, 5), st.integers(1, 6))
def test_no_other_apportionment_makes_the_largest_share_smaller(rows, more, most):
    rows, total = np.array(rows, float), min(len(rows) + more, len(rows) * most)
    found = replicas.apportion(rows, np.ones(len(rows), np.int64), total, most)
    assert found.sum() == total and found.min() >= 1 and found.max() <= most
    every = (np.array(c) for c in itertools.product(range(1, most + 1), repeat=len(rows)) if sum(c) == total)
    assert (rows / found).max() == min((rows / c).max() for c in every)


@given(st.integers(1, 5), st.integers(0, 2), st.integers(0, 999), st.integers(1, 9))
def test_one_slot_per_rank_is_assigned_exactly(count, spare, seed, values):
    table = np.random.default_rng(seed).integers(0, values + 1, (count, count + spare)).astype(float)
    found = assign.exact(table)
    assert len(set(found.tolist())) == count
    def key(ranks):
        taken = table[np.arange(count), list(ranks)]
        return taken.max(), taken.sum()
    assert key(found) == min(map(key, itertools.permutations(range(count + spare), count)))


@pytest.mark.parametrize("seed", range(12))
def test_many_slots_per_rank_come_within_two_percent_of_the_best(seed):
    draw, ranks, capacity = np.random.default_rng(seed), 3, 3
    expert = np.array([0, 0, 1, 2, 3, 4, 5][:7 - seed % 2])
    table = draw.uniform(1, 2, (len(expert), 1)) * draw.uniform(0.8, 1.2, (len(expert), ranks)) / np.bincount(
        expert)[expert][:, None]
    found = assign.assign(table, expert, capacity, 1, (seed, 0))
    assert is_valid(ordered(ranks, found, expert), expert.max() + 1, capacity)
    every = (np.array(r) for r in itertools.product(range(ranks), repeat=len(expert)))
    least = min(assign.slowest(table, r) for r in every
                if is_valid(ordered(ranks, r, expert), expert.max() + 1, capacity))
    assert assign.slowest(table, found) <= 1.02 * least


@settings(deadline=None)
@given(st.integers(2, 4), st.integers(1, 3), st.integers(1, 4), st.integers(1, 30), st.booleans(), st.integers(0, 999))
def test_every_swap_changes_what_tokens_pay_as_told(nodes, size, top_k, tokens, known, seed):
    draw, S = np.random.default_rng(seed), nodes * size
    slot = np.argsort(draw.random((tokens, S)), axis=1)[:, :min(top_k, S)]
    home = draw.integers(nodes, size=tokens) if known else None
    sample = touch.Tokens(slot, S, np.ones(nodes) if known else draw.random(nodes), home)
    node = draw.permutation(np.arange(S) // size)

    def pays(node, only=None):
        return sum(sample.weight[m] - (home is not None and home[t] == m)
                   for t in range(tokens) for m in {int(node[s]) for s in slot[t]} if only in (None, m))

    seen = touch.look(sample, node)
    assert seen.cost == pytest.approx(pays(node)) == pytest.approx(touch.cost(sample, node))
    for e, f in itertools.permutations(range(S), 2):
        if node[e] != node[f]:
            swapped = node.copy()
            swapped[e], swapped[f] = node[f], node[e]
            assert seen.change[e, f] == pytest.approx(pays(swapped) - pays(node), abs=1e-9)
            assert seen.instead[f, e] == pytest.approx(pays(swapped, node[e]) - pays(node, node[e]), abs=1e-9)


@settings(deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=5), st.integers(1, 3), st.integers(0, 999))
def test_starts_fill_nodes_to_their_sizes(sizes, top_k, seed):
    S = sum(sizes)
    if not S:
        return
    slot = np.argsort(np.random.default_rng(seed).random((20, S)), axis=1)[:, :min(top_k, S)]
    sample = touch.Tokens(slot, S, np.ones(len(sizes)), None)
    for node in (grown(sample, np.array(sizes), 0.5), spectral(sample, np.array(sizes))):
        assert np.bincount(node, minlength=len(sizes)).tolist() == sizes


@settings(deadline=None)
@given(st.lists(st.integers(1, 3), min_size=2, max_size=4), st.integers(0, 999))
def test_the_seconds_of_a_node_follow_each_swap(ranks, seed):
    draw, N = np.random.default_rng(seed), len(ranks)
    node = draw.permutation(np.concatenate([np.arange(N), draw.integers(N, size=5)]))
    S = len(node)
    price, paid = Price(draw.integers(1, 4, S).astype(float), draw.random(S), 0.5), draw.random(N)

    def seconds(node, paid):
        return [(sum(price.passed[node == m]) + price.token * paid[m]) / ranks[m]
                + max(sum(price.each[node == m]) / ranks[m], price.each[node == m].max(initial=0)) for m in range(N)]

    now, instead = busy(node, paid, price, np.array(ranks)), draw.random((S, S))
    assert now.seconds == pytest.approx(seconds(node, paid))
    for e, f in itertools.permutations(range(S), 2):
        if node[e] != node[f]:
            swapped, then = node.copy(), paid.copy()
            swapped[e], swapped[f] = node[f], node[e]
            then[node[e]] += instead[f, e]
            assert now.after(np.array(e), np.array(f), instead) == pytest.approx(seconds(swapped, then)[node[e]])


def test_no_node_gets_more_replicas_than_ranks():
    room = Room(np.array([0, 0, 0, 1, 2, 3]), np.array([3, 3]), np.array([2, 2]))
    node = np.array([0, 0, 1, 1, 1, 0])
    assert room.fits(node) and not room.fits(np.array([0, 0, 0, 1, 1, 1]))
    barred = room.barred(node)
    assert barred[2, 5] and barred[5, 2]  # a third replica on node 0
    assert barred[0, 2] and not barred[0, 3]  # the same expert; one that may
    assert Room(np.arange(4), np.array([2, 2]), np.array([1, 1])).barred(np.array([0, 0, 1, 1])) is None


def test_replicas_take_turns_in_the_sample():
    assert dealt(np.array([[0, 1], [1, 2], [1, 0], [1, 2]]), np.array([0, 1, 2, 1])).tolist() == [
        [0, 1], [3, 2], [1, 0], [3, 2]]


@pytest.mark.parametrize("kind", KINDS)
def test_rows_between_nodes_are_those_counted_one_by_one(kind):
    routing, topology = trace(KINDS[kind], 6, 12, 3, 200), nodes(2, 3, 1)
    [layer] = demand.demands(routing, topology, 10.0)
    for seed in range(3):
        placement = ordered(6, np.arange(12) // 2, np.random.default_rng(seed).permutation(12))
        flat = [sum(topology.node[r] != topology.node[home] for r in set(placement.rank[placement.slot[of]].tolist()))
                for of, home in zip(routing.expert[:, 0], routing.rank)]
        spread = Spread(layer, placement, topology)
        assert spread.crossing == pytest.approx(node_rows(routing, 0, placement, topology))
        assert spread.crossing_flat == pytest.approx(np.mean(flat))


def test_of_replicas_each_gets_the_same_part():
    """Expected rows, against all ways in which a token's rows may go."""
    topology, draw = nodes(2, 2), np.random.default_rng(3)
    routing = trace(zipf(1.0), 4, 5, 3, 40)
    [layer] = demand.demands(routing, topology, 10.0)
    placement = slots(draw, 5, 4, 3)
    assert placement.replicated
    node = [topology.node[placement.rank[placement.expert == e]] for e in range(5)]
    sent = [np.mean([len(set(ways) - {topology.node[home]}) for ways in itertools.product(*(node[e] for e in es))])
            for es, home in zip(routing.expert[:, 0], routing.rank)]
    assert Spread(layer, placement, topology).crossing == pytest.approx(np.mean(sent))


def test_a_run_on_other_ranks_stands_for_ranks_that_are_alike():
    routing, topology = trace(zipf(1.0), 3, 6, 2, 90), nodes(2, 2)
    [layer] = demand.demands(routing, topology, 8.0)
    assert layer.home is None and np.ptp(layer.load, axis=0).max() == 0
    assert layer.load.sum() == pytest.approx(4 * 8 * 2)
    assert layer.rows / layer.rows.sum() == pytest.approx(routing.load[0].sum(axis=0) / 180)
    placement = ordered(4, np.arange(6) * 4 // 6, np.arange(6))
    every = [node_rows(counted(routing.expert, np.full(90, rank, np.int32), 4, 6), 0, placement, topology)
             for rank in range(4)]
    assert Spread(layer, placement, topology).crossing == pytest.approx(np.mean(every))


def test_a_sample_of_more_ranks_than_the_plan_has():
    """Results with large tables tell the rows of all ranks together, and the ranks of sampled tokens."""
    one = trace(zipf(1.0), 3, 6, 2, 90)
    [layer] = demand.demands(Routing(one.load.sum(axis=1, keepdims=True), one.rank, one.expert), nodes(1), 8.0)
    assert layer.home is None and layer.load.shape == (1, 6)


def slow_rows(layer, placement, topology, exchange):
    """Rows from rank to rank, there and back, in one table each; one slot per rank, so no rows of a token meet but in
    nodes, whose rows are given as they are."""
    R = topology.ranks
    there, back = np.zeros((R, R)), np.zeros((R, R))
    spread = Spread(layer, placement, topology)
    merge = spread.merged(spread.node_share, spread.nodes)
    ranks = [[r for r in range(R) if topology.node[r] == m] for m in range(topology.nodes)]
    relay = [[of[ranks[topology.node[s]].index(s) % len(of)] for of in ranks] for s in range(R)]
    for s in range(R):
        per_node = np.zeros(topology.nodes)
        for e, r in zip(placement.expert, placement.rank):
            rows = layer.load[s, e] / placement.copies[e]
            via = relay[s][topology.node[r]] if exchange == "twohop" else s
            there[via, r] += rows
            back[r, via] += rows
            per_node[topology.node[r]] += rows
        for m in range(topology.nodes):
            if exchange == "twohop" and m != topology.node[s]:
                there[s, relay[s][m]] += per_node[m] * merge[m]
                back[relay[s][m], s] += per_node[m]
    return there, back


@pytest.mark.parametrize("exchange", ["flat", "twohop"])
@pytest.mark.parametrize("sizes", [(2, 2, 2), (3, 1, 2), (6,), (1,) * 6])
def test_bytes_and_seconds_are_those_of_a_slow_count(exchange, sizes):
    topology, draw = nodes(*sizes), np.random.default_rng(1)
    [layer] = demand.demands(trace(zipf(1.0), 6, 4, 2, 100), topology, 16.0)
    placement = slots(draw, 4, 6, 1)
    found = cost.predict([None, layer], [placement] * 2, topology, WEIGHTS, exchange)
    there, back = slow_rows(layer, placement, topology, exchange)
    rows = np.array([sum(layer.rows[e] / placement.copies[e] for e in placement.held_by(r)) for r in range(6)])
    assert found.rows[1] == pytest.approx(rows) and not found.rows[0].any()
    same = topology.node[:, None] == topology.node
    every = WEIGHTS.row * (there + back)
    assert found.bytes[1] == pytest.approx([np.trace(every), every[same].sum() - np.trace(every), every[~same].sum()])
    link = WEIGHTS.row * (there / topology.rate + (back / topology.rate).T)
    busy = WEIGHTS.compute * rows + link.sum(axis=0)
    slowest = busy.argmax()
    assert found.seconds[1, :3].sum() == pytest.approx(busy[slowest])
    assert found.seconds[1, 1:3] == pytest.approx([link[same[:, slowest], slowest].sum(),
                                                   link[~same[:, slowest], slowest].sum()])
    assert found.imbalance == pytest.approx([rows.max() / rows.mean() - 1])


def test_hops_wait_one_after_the_other():
    topology = nodes(2, 2, near=(1.0, 1e9), far=(10.0, 1e9))
    [layer] = demand.demands(trace(KINDS["uniform"], 4, 4, 2, 100), topology, 16.0)
    placement = ordered(4, np.arange(4), np.arange(4))
    waits = {exchange: cost.predict([layer], [placement], topology, WEIGHTS, exchange).seconds[0, 3]
             for exchange in ("flat", "twohop")}
    assert waits == {"flat": 20.0, "twohop": 22.0}


@pytest.mark.parametrize("exchange", ["flat", "twohop"])
def test_what_an_expert_costs_a_rank_is_what_it_adds_there(exchange):
    topology = nodes(2, 3)
    [layer] = demand.demands(trace(zipf(1.0), 5, 5, 2, 100), topology, 16.0)
    table = cost.holding(layer, topology, WEIGHTS, exchange)
    placement = ordered(5, np.array([3, 0, 4, 1, 2]), np.arange(5))
    near = cost.travelling(Spread(layer, placement, topology), exchange)
    for e, r in zip(placement.expert, placement.rank):
        link = WEIGHTS.row * (near.near[:, r] / topology.rate[:, r] + near.near_back[:, r] / topology.rate[r]).sum()
        assert table[e, r] == pytest.approx(WEIGHTS.compute * layer.rows[e] + link)
