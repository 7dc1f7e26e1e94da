"""The policies: what they find on seeded traces, against exact and annealed answers."""

import itertools
import sys

import numpy as np
import pytest
from helpers import ROOT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from routes import KINDS, WEIGHTS, anneal, counted, gated, node_rows, nodes, planted, planted_groups, trace, zipf
from test_place import is_valid

from hpcmoe.errors import JobError
from hpcmoe.placement import group, replicas
from hpcmoe.placement.assign import ordered
from hpcmoe.placement.policy import POLICIES, Case, check, linear, load, quick, topology
from hpcmoe.slots import Routing

SHAPES = {"16 ranks on 4 nodes": (16, 4), "64 ranks on 8 nodes": (64, 8)}
COUNTS = [(16, 4, 16, 2), (16, 4, 16, 4), (16, 4, 64, 4), (64, 8, 64, 4), (64, 8, 64, 8)]
"""Of ranks, nodes, experts, and those of a token"""


def case(routing, *sizes, exchange="twohop", capacity=None, seed=0, **links):
    """A case with as much room as experts in order need."""
    between = nodes(*sizes, **links)
    return Case(routing, between, WEIGHTS, capacity or -(-routing.load.shape[2] // between.ranks), exchange, seed)


def rows(placements, given: Case, layer: int = 0) -> float:
    return node_rows(given.routing, layer, placements[layer], given.topology)


@pytest.fixture
def hurried(monkeypatch):
    """Searches give up early: for what must hold however little they find."""
    monkeypatch.setattr(group, "MOST", group.FEWEST)


@pytest.mark.usefixtures("hurried")
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 10), st.lists(st.integers(1, 4), min_size=1, max_size=3), st.integers(0, 2), st.integers(1, 4),
       st.sampled_from(sorted(KINDS)), st.sampled_from(["flat", "twohop"]), st.sampled_from(sorted(POLICIES)),
       st.booleans(), st.integers(0, 99))
def test_every_policy_places_every_expert(experts, sizes, more, top_k, kind, exchange, policy, same, seed):
    ranks = sum(sizes)
    like = planted(min(4, experts)) if kind == "planted" else KINDS[kind]
    routing = trace(like, ranks if same else ranks + 1, experts, min(top_k, experts), 30, seed=seed)
    found = case(routing, *sizes, exchange=exchange, capacity=-(-experts // ranks) + more, seed=seed)
    placements = POLICIES[policy](found)
    assert is_valid(placements[0], experts, found.capacity) and placements[0].ranks == ranks
    predicted = found.predict(placements)
    assert np.isfinite(predicted.seconds).all() and predicted.rows.sum() == pytest.approx(found.demands[0].rows.sum())
    if policy == "quick":
        assert predicted.total <= found.predict(linear(found)).total * (1 + 1e-9)


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize("policy", POLICIES)
def test_the_same_input_gives_the_same_plan(policy):
    a, b = (POLICIES[policy](case(trace(gated, 8, 12, 3, 500, layers=2), 4, 4, capacity=2, seed=5)) for _ in range(2))
    for one, other in zip(a, b, strict=True):
        assert np.array_equal(one.rank, other.rank) and np.array_equal(one.expert, other.expert)


def test_random_depends_on_its_seed_and_layer():
    routing = trace(gated, 8, 8, 2, 100, layers=2)
    a, b = (POLICIES["random"](case(routing, 4, 4, seed=seed)) for seed in (1, 2))
    assert not np.array_equal(a[0].expert, b[0].expert) and not np.array_equal(a[0].expert, a[1].expert)


def test_dense_layers_hold_nothing():
    one = trace(gated, 4, 8, 2, 100)
    both = Routing(np.concatenate([np.zeros_like(one.load), one.load]), one.rank,
                   np.concatenate([np.full_like(one.expert, -1), one.expert], axis=1))
    for policy in POLICIES.values():
        dense, moe = policy(case(both, 2, 2))
        assert not len(dense.rank) and is_valid(moe, 8, 2)


def test_experts_that_do_not_fit_are_refused():
    with pytest.raises(JobError, match="4 ranks that hold 2 experts of a layer at most cannot hold 9: give --slots 3"):
        check(case(trace(gated, 4, 9, 2, 20), 2, 2, capacity=2))


@pytest.mark.parametrize("experts, top_k", [(64, 4), (64, 8)])
@pytest.mark.parametrize("ranks, count", SHAPES.values(), ids=SHAPES)
def test_planted_groups_are_found(ranks, count, experts, top_k):
    """At least 90 % of what the planted groups save over experts in order, on these tokens and on others."""
    every = trace(planted(count), ranks, experts, top_k, 8000)
    seen, unseen = (counted(every.expert[part], every.rank[part], ranks, experts)
                    for part in (slice(4000), slice(4000, None)))
    sizes = [ranks // count] * count
    group = planted_groups(np.random.default_rng([0, 0]), experts, count)
    best = [ordered(ranks, np.arange(experts) * ranks // experts, np.argsort(group, kind="stable"))]
    placed = topology(case(seen, *sizes))
    for routing in (seen, unseen):
        before, found, least = (rows(p, case(routing, *sizes)) for p in (linear(case(seen, *sizes)), placed, best))
        assert found <= before - 0.9 * (before - least), (before, found, least)


@pytest.mark.parametrize("sizes, experts, top_k", [((4, 4), 8, 3), ((2, 2, 2), 6, 2), ((2, 2, 2, 2), 8, 3),
                                                   ((1, 2), 9, 2)])
@pytest.mark.parametrize("kind", ["gated", "zipf", "bursts"])
def test_grouping_comes_within_two_percent_of_the_exact_optimum(sizes, experts, top_k, kind):
    """Of rows between nodes, where all groupings can be tried."""
    given = case(trace(KINDS[kind], sum(sizes), experts, top_k, 300), *sizes)
    ways = np.array(sorted(set(itertools.permutations(np.repeat(np.arange(len(sizes)), [
        int((given.topology.node[linear(given)[0].rank] == m).sum()) for m in range(len(sizes))])))))
    routing, home = given.routing, given.topology.node[given.routing.rank]
    least = np.inf
    for way in ways:
        there = way[routing.expert[:, 0]]
        touched = (there[:, :, None] == np.arange(len(sizes))).any(axis=1)
        touched[np.arange(len(home)), home] = False
        least = min(least, touched.sum() / len(home))
    assert rows(topology(given), given) <= 1.02 * least + 1e-12


@pytest.mark.parametrize("sizes, experts", [((2, 2), 4), ((2, 3), 4), ((2, 1, 2), 5)])
def test_flat_with_one_slot_per_rank_is_exact(sizes, experts):
    """The slowest rank first, then the sum; on links that all differ."""
    draw, ranks = np.random.default_rng(1), sum(sizes)
    given = case(trace(zipf(0.6), ranks, experts, 2, 200), *sizes, exchange="flat", capacity=1)
    given.topology.rate[:] *= draw.uniform(0.5, 2, (ranks, ranks))
    given.topology.latency[:] = 0
    layer = given.layers[0]
    found = layer.seconds(layer.single.placed(1.0))
    every = [layer.seconds(ordered(ranks, np.array(to), np.arange(experts)))
             for to in itertools.permutations(range(ranks), experts)]
    assert found == pytest.approx(min(every))


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ranks, count, experts, top_k", COUNTS[:4])
def test_never_worse_than_experts_in_order(kind, ranks, count, experts, top_k):
    given = case(trace(KINDS[kind], ranks, experts, top_k, 400), *[ranks // count] * count)
    in_order = linear(given)
    assert rows(topology(given), given) <= rows(in_order, given) + 1e-12
    assert given.predict(quick(given)).total <= given.predict(in_order).total * (1 + 1e-9)
    flat = case(given.routing, *[ranks // count] * count, exchange="flat")
    assert flat.predict(topology(flat)).total <= flat.predict(linear(flat)).total * (1 + 1e-9)


def annealed(given: Case, steps: int) -> float:
    """Rows to other nodes of a token, after so many steps."""
    home = given.topology.node[given.routing.rank]
    node = given.topology.node[linear(given)[0].rank]
    return anneal(given.routing.expert[:, 0].astype(np.int64), home, node, given.topology.nodes, steps) / len(home)


@pytest.mark.parametrize("experts, top_k, kind", [(16, 2, "gated"), (16, 4, "zipf"), (64, 4, "drift")])
def test_grouping_comes_near_annealing(experts, top_k, kind):
    given = case(trace(KINDS[kind], 16, experts, top_k, 1500), 4, 4, 4, 4)
    assert rows(topology(given), given) <= 1.03 * annealed(given, 8000)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ranks, count, experts, top_k", COUNTS)
def test_grouping_comes_within_three_percent_of_long_annealing(kind, ranks, count, experts, top_k):
    given = case(trace(KINDS[kind], ranks, experts, top_k, 4000), *[ranks // count] * count)
    found, least = rows(topology(given), given), annealed(given, 200_000)
    print(f"{kind} E {experts} K {top_k} on {ranks} ranks of {count} nodes: in order {rows(linear(given), given):.4f}, "
          f"found {found:.4f}, annealed {least:.4f}: {100 * (found / least - 1):+.2f} %")
    assert found <= 1.03 * least


@pytest.mark.parametrize("steps", [4000, pytest.param(200_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name, ranks, count", [("e64", 16, 4), ("e16", 16, 4), ("e64", 64, 8), ("upcycled", 16, 4)])
def test_grouping_of_recorded_routing(name, ranks, count, steps):
    """Tokens of real text through small trained models, and through a large one that was upcycled (tests/trained)."""
    kept = np.load(ROOT / "tests" / "trained" / name / "routed.npz")
    expert, rank = kept["expert"].astype(np.int16), np.arange(len(kept["rank"]), dtype=np.int32) % ranks
    for layer in range(expert.shape[1]):
        routing = counted(expert[:, layer:layer + 1], rank, ranks, 64 if name == "e64" else 16)
        given = case(routing, *[ranks // count] * count)
        found, before, least = rows(topology(given), given), rows(linear(given), given), annealed(given, steps)
        print(f"{name}, layer {layer}, {ranks} ranks on {count} nodes: in order {before:.4f}, found {found:.4f}, "
              f"annealed {least:.4f}: {100 * (found / least - 1):+.2f} %, {100 * (1 - found / before):.1f} % saved")
        assert found <= min(1.03 * least, before)


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize("ranks, most", [(24, 0.385), (32, 0.260)])
@pytest.mark.parametrize("policy", [load, topology, quick])
@pytest.mark.parametrize("exchange", ["flat", "twohop"])
def test_replicas_even_out_a_zipf_load(ranks, most, policy, exchange):
    """E 16, Zipf-0.6: the optimum of expected rows, (max - mean) / mean."""
    expected = np.arange(1, 17) ** -0.6
    sample = trace(zipf(0.6), ranks, 16, 2, 2000)
    sure = np.tile(np.round(1e6 * expected).astype(np.int64), (1, ranks, 1))
    given = case(Routing(sure, sample.rank, sample.expert), *[ranks // 4] * 4, exchange=exchange, capacity=1)
    assert given.predict(policy(given)).imbalance[0] <= most


@pytest.mark.parametrize("capacity", [1, 2, 3])
def test_no_other_number_of_replicas_is_better_and_no_smaller_one_as_good(capacity):
    for busy in ([40, 40, 10], [9, 7, 5, 5, 3], [1, 1], [0, 0, 5]):
        wanted = np.array(busy, float)
        _, expert = replicas.scan(wanted, 5, capacity)
        fullest = {}
        for slots in range(len(wanted), min(capacity, len(wanted)) * 5 + 1):
            copies = replicas.apportion(wanted, np.ones(len(wanted), np.int64), slots, 5)
            each = np.repeat(wanted / copies, copies)
            rank = replicas.pack(each, np.repeat(np.arange(len(wanted)), copies), 5, capacity)
            fullest[slots] = np.bincount(rank, each).max()
        best = min(fullest.values())
        assert len(expert) == min(slots for slots, most in fullest.items() if most <= best * (1 + 1e-9))
    assert len(replicas.scan(np.array([40.0, 40.0, 10.0]), 4, 1)[0]) == 3  # a fourth relieves one of two


def test_fast_links_are_used_where_they_are():
    """An expert goes where its tokens come from."""
    counts = np.ones((1, 4, 4), np.int64)
    counts[0, [0, 1, 2, 3], [2, 3, 0, 1]] = 50
    sample = trace(zipf(0.0), 4, 4, 1, 50)
    given = case(Routing(counts, sample.rank, sample.expert), 2, 2, exchange="flat")
    assert topology(given)[0].expert.tolist() == [2, 3, 0, 1]
    assert given.predict(topology(given)).bytes[0, 0] > 10 * given.predict(linear(given)).bytes[0, 0]


def test_without_scipy_an_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    monkeypatch.setitem(sys.modules, "scipy.sparse", None)
    given = case(trace(gated, 4, 4, 2, 50), 2, 2)
    assert len(load(given)) == 1
    with pytest.raises(JobError, match=r"need SciPy, which is not installed: pip install 'hpcmoe\[plan\]'"):
        topology(given)
