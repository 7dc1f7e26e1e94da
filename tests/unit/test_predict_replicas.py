"""Replicas in predictions: who gets which rows from where, hand-computed steps, tallies, and other experts in slots."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_predict import PLAIN, SMALL, model, run

from hpcmoe.config import Balance, Exchange, Parallel, Schedule
from hpcmoe.exchange import replicas
from hpcmoe.predict import cost, demand, flow, machine, simulate, tally
from hpcmoe.predict.layout import Layout, Load, bare
from hpcmoe.predict.shares import shares
from hpcmoe.slots import Placement
from hpcmoe.types import STAGES

SERIAL = Schedule("serial", 1)


@st.composite
def placements(draw, most_shards=3):
    """Of up to 6 experts, each somewhere, on up to 8 ranks or groups."""
    groups, experts, shards = draw(st.integers(1, 8)), draw(st.integers(1, 6)), draw(st.integers(1, most_shards))
    held = [draw(st.sets(st.integers(0, experts - 1))) for _ in range(groups)]
    for expert in set(range(experts)).difference(*held):
        held[draw(st.integers(0, groups - 1))].add(expert)
    rank = np.repeat(np.arange(groups), [len(some) for some in held]).astype(np.int32)
    found = Placement(groups, rank, np.array([e for some in held for e in sorted(some)], np.int32))
    return found.cut(shards) if shards > 1 else found


def counted(placement, at):
    """`Shares.turns`, rank by rank."""
    found = np.zeros((3, len(placement.rank), placement.slots.shape[1]), np.int64)
    for me in range(at.ranks):
        head, to = me - me % placement.shards, replicas.near(placement, at.node.tolist(), me)
        for expert, k in zip(*np.nonzero(to.slot >= 0)):
            rank = placement.rank[slot := to.slot[expert, k]]
            found[0 if rank == head else 1 if at.node[rank] == at.node[head] else 2, slot, k] += 1
    return found


def played(placement, at, likely, tokens, exact, times=150):
    """`[3, S]`: what the exchange's own shares come to, in the mean."""
    chance, nodes = np.random.default_rng(0), at.node.tolist()
    near = [replicas.near(placement, nodes, me) for me in range(at.ranks)]
    found = np.zeros((3, len(placement.rank)))
    for _ in range(times):
        counts = chance.binomial(tokens, likely, (at.ranks, len(likely)))
        for me, to in enumerate(near):
            share = (replicas.exact(counts, placement, nodes, me, to) if exact
                     else replicas.even(counts[me], placement))
            for expert, k in zip(*np.nonzero(share)):
                rank = placement.rank[slot := to.slot[expert, k]]
                found[0 if rank == me else 1 if at.node[rank] == at.node[me] else 2, slot] += share[expert, k]
    return found / times


class TestShares:
    @settings(max_examples=60, deadline=None)
    @given(placements(), st.integers(1, 4))
    def test_turns_are_those_of_the_exchange(self, placement, per_node):
        at = flow.nodes(placement.ranks, per_node * placement.shards)
        np.testing.assert_array_equal(shares(placement, at).turns, counted(placement, at))

    @settings(max_examples=40, deadline=None)
    @given(placements(), st.integers(1, 4), st.integers(1, 40), st.booleans(), st.integers(0, 99))
    def test_no_row_is_lost(self, placement, per_node, tokens, exact, seed):
        at = flow.nodes(placement.ranks, per_node * placement.shards)
        chance, E = np.random.default_rng(seed), len(placement.copies)
        likely = chance.random(E)
        found = shares(placement, at).expected(likely, tokens, exact)
        rows = chance.binomial(at.ranks * tokens, likely).astype(np.float64)
        assert np.bincount(placement.expert, found.rows, E) == pytest.approx(at.ranks * tokens * likely)
        assert np.bincount(placement.expert, found.slots(chance, rows), E) == pytest.approx(rows)
        assert (found.come >= -1e-9).all()
        slots = found.slots(None, at.ranks * tokens * likely)
        parts = found.parts(slots, at.ranks, placement.shards)
        if parts is not None:
            assert (parts >= -1e-9).all()
            assert parts.sum(axis=0)[np.unique(placement.rank)] == pytest.approx(1)

    @pytest.mark.parametrize("exact", [False, True])
    @pytest.mark.parametrize("tokens", [1, 6, 64])
    def test_expected_rows_are_those_of_many_exchanges(self, exact, tokens):
        placement = Placement(8, np.arange(8, dtype=np.int32), np.array([0, 0, 1, 0, 2, 1, 0, 2], np.int32))
        at, likely = flow.nodes(8, 3), np.array([0.5, 0.3, 0.1])
        found, seen = (shares(placement, at).expected(likely, tokens, exact),
                       played(placement, at, likely, tokens, exact))
        if exact:  # where from is right of all replicas together
            assert found.rows == pytest.approx(seen.sum(axis=0), abs=1)
            assert found.come.sum(axis=1) == pytest.approx(seen.sum(axis=1), rel=0.1, abs=1)
        else:
            assert found.come == pytest.approx(seen, rel=0.1, abs=0.15)

    def test_draws_scatter_as_those_of_many_exchanges(self):
        placement = Placement(16, np.arange(16, dtype=np.int32), (np.arange(16) // 4).astype(np.int32))
        at, likely, chance = flow.nodes(16, 1), np.full(4, 0.25), np.random.default_rng(1)
        found, T = shares(placement, at).expected(likely, 4, False), 4
        drawn = np.array([found.slots(chance, chance.binomial(16 * T, likely).astype(float)) for _ in range(400)])
        near, seen = [replicas.near(placement, at.node.tolist(), me) for me in range(16)], np.zeros((400, 16))
        for row in seen:
            for to in near:
                share = replicas.even(chance.binomial(T, likely), placement)
                np.add.at(row, to.slot[share > 0], share[share > 0])
        assert drawn.mean() == pytest.approx(seen.mean(), rel=0.02)
        assert drawn.std(axis=0).mean() == pytest.approx(seen.std(axis=0).mean(), rel=0.08)

    def test_exact_shares_are_as_even_as_can_be(self):
        placement = Placement(3, np.arange(3, dtype=np.int32), np.zeros(3, np.int32))
        found = shares(placement, flow.nodes(3, 1)).expected(np.ones(1), 4, True)
        assert found.slots(np.random.default_rng(0), np.array([10.0])).tolist() == [4, 4, 2]


def by_hand(exact=False, hw=PLAIN):
    """4 ranks, each a node, 4 tokens each; expert 0 on ranks 0 and 1, expert 1 on 2 and 3, both as likely."""
    batch = simulate.batch_of(SMALL, [(1, 9)] * 4)
    job = replace(bare(schedule=SERIAL, exchange=Exchange("alltoallv")), balance=Balance("replicas", exact=exact))
    even = simulate.Given(demand.skewed(SMALL.moe, 1, 0.0, 0), even=True)
    step, = simulate.simulate(SMALL, hw, Layout(4, job), even, [batch]).steps
    works = [cost.attention(SMALL, PLAIN, 0, 1, batch.spans), cost.gate(SMALL, PLAIN, 4), cost.pack(PLAIN, 4, 8),
             cost.combine(SMALL, PLAIN, 4, 1), cost.head(SMALL, PLAIN, 4)]
    computes = sum(work.bytes for work in works) / 1e9 + (2 * 96 + 2 * 4 * 28) / 1e9  # 4 rows for each replica
    return step, computes + 2 * 3 * 40 / 1e8  # headers of the vote and of the layer


def test_replicas_of_four_ranks_by_hand():
    """X of 4 tokens, binomial, go to an expert: E floor(X / 2) = 12/16, and P(X is odd) = 1/2 that the nearest gets one
    more. So 1.25 rows stay; .75 come from the other replica's rank, 1.25 and .75 from the other two, by turns."""
    step, rest = by_hand()
    assert step.traffic.bytes.tolist() == [2 * 1.25 * 16, 0, 2 * 2.75 * 16]
    assert step.seconds == pytest.approx(rest + 2 * 2.75 * 16 / 1e8, rel=1e-9)
    assert step.imbalance == pytest.approx(0)


def test_tallied_replicas_by_hand():
    """2 rows stay, as many as can be; 2 come. Each rank gets 2 int64 from 3 others first; the shares take 5 passes."""
    step, rest = by_hand(exact=True)
    passes = (4 + 1) * (tally.PASS + 2 * (4 + 2) * tally.VALUE)
    assert step.traffic.bytes.tolist() == [2 * 2 * 16, 0, 2 * 2 * 16]
    assert step.seconds == pytest.approx(rest + 2 * 2 * 16 / 1e8 + 3 * 16 / 1e8 + passes, rel=1e-9)


def test_where_there_is_no_gpu_the_stream_makes_the_shares():
    hosts = replace(PLAIN, device=replace(PLAIN.device, weight=4))
    tallied, bare_step = (by_hand(exact, hosts)[0] for exact in (True, False))
    passes = (4 + 1) * (tally.PASS + 2 * (4 + 2) * tally.VALUE)
    assert (tallied.stages - bare_step.stages)[2] == pytest.approx(passes)


def skewed(ranks, balance, spec=None, **parallel):
    spec = spec or model(experts=8)
    use = simulate.Given(demand.skewed(spec.moe, len(spec.moe_layers), 1.0, 0))
    job = replace(bare(Parallel(**parallel), schedule=SERIAL), balance=balance)
    return run(spec, Layout(ranks, job), use, Load(4, 16, 8, 64), machine.load("h100-ib")).steps[-1]


def test_tallies_even_the_load_and_cost_time():
    even, exact = (skewed(32, Balance("replicas", exact=exact)) for exact in (False, True))
    assert exact.imbalance < even.imbalance
    assert exact.stages[STAGES.index("exchange")] > 0


def test_without_replicas_nothing_is_tallied():
    assert skewed(8, Balance(exact=True)).seconds == skewed(8, Balance()).seconds


def test_other_experts_in_slots_are_simulated_where_they_have_settled():
    for ranks, mode in ((3, "none"), (12, "replicas")):
        before, after = (skewed(ranks, Balance(mode, replan_every=n), model(experts=9)).imbalance for n in (0, 50))
        assert after < 0.9 * before


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 10), st.integers(1, 6), st.integers(1, 4), st.sampled_from(["auto", "twohop", "persistent"]),
       st.sampled_from(["serial", "overlapped"]), st.booleans(), st.sampled_from([0, 9]), st.sampled_from([1, 2]),
       st.floats(0, 2))
def test_any_replicas_conserve_and_end(groups, experts, per_node, mode, turns, exact, every, shards, zipf):
    """`simulate` raises where bytes get lost, or anything is busy for too long."""
    spec = model(experts=experts, top_k=min(2, experts))
    job = replace(bare(Parallel(expert_tensor=shards, ranks_per_node=per_node * shards), Exchange(mode),
                       Schedule(turns, 2)), balance=Balance("replicas", exact, every))
    use = simulate.Given(demand.skewed(spec.moe, len(spec.moe_layers), zipf, 1))
    assert all(step.seconds > 0 for step in run(spec, Layout(groups * shards, job), use).steps)
