"""Predictions: hand-computed cases, what is conserved, and that the schedule is the one that runs."""

import json
import time
from dataclasses import replace

import numpy as np
import pytest
from helpers import assert_one_line, command, job_files, spec_file
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcmoe.config import Balance, Exchange, Parallel, Schedule
from hpcmoe.engine import layer
from hpcmoe.errors import INTERNAL, JobError
from hpcmoe.predict import cost, demand, flow, machine, simulate
from hpcmoe.predict.estimate import estimate
from hpcmoe.predict.layout import Layout, Load, bare
from hpcmoe.predict.machine import Device, Hardware, Links, Overhead
from hpcmoe.predict.network import Defect, Network
from hpcmoe.spec import Attention, Dense, Latent, ModelSpec, Moe
from hpcmoe.types import Span

PLAIN = Hardware("plain", Device(1e12, 1e9, 1e12), Links(1, 1e9, 1e8))
"""No latency and no overhead: 1e9 bytes/s of memory, 1e12 FLOP/s, 1e8 bytes/s between ranks."""
SMALL = ModelSpec("small", 1, 8, 16, 64, Attention(2, 2, 4), None, Moe(2, 1, 4))


def model(layers=3, experts=8, top_k=2, **attention):
    return ModelSpec("some", layers, 64, 100, 512, Attention(4, 4, 16, **attention), Dense(64, 1),
                     Moe(experts, top_k, 32, shared_hidden=16))


def run(spec, layout, given=None, load=Load(4, 16, 8, 64), hw=None, steps=2):
    given = given or simulate.Given(demand.skewed(spec.moe, len(spec.moe_layers), 0.0, 0))
    batches = [simulate.prefill(spec, load), *(simulate.decode(spec, load, n) for n in range(steps))]
    return simulate.simulate(spec, hw or machine.load("h100-ib"), layout, given, batches)


class TestCost:
    """Against numbers that were worked out by hand."""

    def test_a_product_reads_its_weights_once(self):
        work = cost.product("x", PLAIN.device, 3, 100, 20)
        assert (work.bytes, work.flops) == (2 * 100 + 2 * 3 * 20, 2 * 3 * 100)
        assert work.seconds == pytest.approx(320 / 1e9)

    def test_few_rows_cost_what_reading_the_weights_does_and_many_their_flops(self):
        few, many = (float(cost.experts(SMALL, PLAIN, 1, np.array([rows]))[2:].sum()) for rows in (1.0, 1e9))
        assert few == pytest.approx((2 * 96 + 2 * 28) / 1e9)
        assert many == pytest.approx(max(2 * 1e9 * 96 / 1e12, (192 + 2e9 * 28) / 1e9))

    def test_an_expert_without_rows_costs_nothing(self):
        hw = replace(PLAIN, overhead=Overhead(expert=1.0))
        assert not any(values.any() for values in cost.experts(SMALL, hw, 1, np.zeros(3)))

    def test_shards_of_an_expert_read_a_part_each(self):
        whole, half = (cost.experts(SMALL, PLAIN, t, np.array([1e6]))[1][0] for t in (1, 2))
        assert half == whole / 2

    @given(st.integers(1, 6), st.integers(0, 6), st.integers(0, 5))
    def test_pairs_are_those_of_a_mask(self, rows, cached, window):
        seen = [[key for key in range(cached + i + 1) if not window or cached + i - key < window] for i in range(rows)]
        pairs, keys = cost.pairs([Span(0, 0, rows, cached)], window)
        assert pairs[0] == sum(map(len, seen)) and keys[0] == len(set().union(*seen))

    def test_attention_of_one_token_reads_its_keys_and_values(self):
        work = cost.attention(SMALL, PLAIN, 0, 1, [Span(0, 0, 1, 9)])
        weights = 8 * (8 + 16) + 8 * 8
        assert work.flops == 2 * weights + 2 * 10 * (8 + 8)
        assert work.bytes == 2 * weights + 2 * (6 * 8 + 2 * 16) + 2 * 16 * (10 + 1)

    def test_a_team_reads_a_part_of_the_weights_each(self):
        whole, half = (cost.attention_values(SMALL, 0, team)[0] for team in (1, 2))
        assert half == whole / 2

    def test_the_absorbed_form_reads_vectors_only(self):
        latent = Latent(32, 8, 16)
        spec = replace(SMALL, attention=Attention(4, 4, 16, latent=latent))
        one, long = (cost.attention(spec, PLAIN, 0, 1, [Span(0, 0, 1, cached)]) for cached in (0, 1000))
        assert long.bytes - one.bytes == 2 * 1000 * (32 + 8)
        assert long.flops - one.flops == 2 * 4 * 1000 * (32 + 8 + 32)


class TestFlow:
    @given(st.lists(st.floats(0, 1e4), min_size=1, max_size=24), st.integers(1, 8), st.booleans(), st.booleans())
    def test_what_leaves_is_what_comes_over_each_kind_of_link(self, rows, per_node, hops, back):
        rows, at = np.array(rows), flow.nodes(len(rows), per_node)
        to_nodes = at.sums(rows) * 0.7 if hops else None
        moving = (flow.home if back else flow.there)(rows, to_nodes, at, 1.0)
        for hop in moving.hops:
            for out, come in zip(hop.out, hop.come):
                assert out.sum() == pytest.approx(come.sum(), abs=1e-6)
                assert (out >= -1e-9).all()

    def test_every_row_goes_to_its_rank(self):
        rows, at = np.array([3.0, 5.0, 1.0, 7.0]), flow.nodes(4, 2)
        hop, = flow.there(rows, None, at, 1.0).hops
        assert hop.come[0] + hop.come[1] + rows / 4 == pytest.approx(rows)

    def test_bytes_that_get_lost_are_a_defect(self):
        network = Network(PLAIN.links, np.ones(2, np.int64), np.ones((2, 2), bool))
        none = np.zeros(2)
        with pytest.raises(Defect, match="bytes were sent"):
            network.move(none, flow.Move((none, np.ones(2)), (none, np.zeros(2)), none, 0.0, "alltoallv"))


def test_two_ranks_and_one_layer_by_hand():
    """4 tokens a rank, each to one of two experts, as likely on either rank: 2 rows of 16 bytes each way."""
    batch = simulate.batch_of(SMALL, [(1, 9)] * 4)
    layout = Layout(2, bare(schedule=Schedule("serial", 1), exchange=Exchange("alltoallv")))
    even = simulate.Given(demand.skewed(SMALL.moe, 1, 0.0, 0), even=True)
    step, = simulate.simulate(SMALL, PLAIN, layout, even, [batch]).steps
    moved = [cost.attention(SMALL, PLAIN, 0, 1, batch.spans), cost.gate(SMALL, PLAIN, 4), cost.pack(PLAIN, 4, 8),
             cost.combine(SMALL, PLAIN, 4, 1), cost.head(SMALL, PLAIN, 4)]
    computes = sum(work.bytes for work in moved) / 1e9 + (2 * 96 + 2 * 4 * 28) / 1e9
    headers = 40 / 1e8  # twice: of the vote, and of the layer
    assert step.traffic.bytes.tolist() == [2 * 2 * 16, 0, 2 * 2 * 16]
    assert step.seconds == pytest.approx(computes + 2 * headers + 2 * 2 * 16 / 1e8, rel=1e-9)
    assert step.traffic.exposed == pytest.approx(step.traffic.seconds)


def test_the_steps_are_the_engine_s_own(monkeypatch):
    began = []
    monkeypatch.setattr(layer, "step", lambda *given, real=layer.step: began.append(given[2]) or real(*given))
    run(model(), Layout(4, bare(schedule=Schedule("overlapped", 2))))
    assert began.count(0) == began.count(1) == 3 * 4


def test_in_turns_arithmetic_hides_the_exchange():
    spec = model(layers=4)
    hw = replace(machine.load("h100-ib"), overhead=Overhead(attention=50e-6))
    took = {mode: run(spec, Layout(4, bare(schedule=Schedule(mode, 2))), hw=hw).steps[-1]
            for mode in ("serial", "overlapped")}
    assert took["overlapped"].seconds < took["serial"].seconds
    assert took["overlapped"].traffic.exposed < took["serial"].traffic.exposed


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 24), st.integers(1, 12), st.integers(1, 4), st.sampled_from(["auto", "twohop", "persistent"]),
       st.sampled_from(["serial", "overlapped"]), st.integers(1, 3), st.floats(0, 2), st.integers(0, 1))
def test_any_layout_conserves_and_ends(ranks, experts, per_node, mode, turns, parts, zipf, slowed):
    """`simulate` raises where bytes get lost, or anything is busy for too long."""
    spec = model(experts=experts, top_k=min(2, experts))
    job = bare(Parallel(ranks_per_node=per_node), Exchange(mode), Schedule(turns, parts))
    use = demand.skewed(spec.moe, len(spec.moe_layers), zipf, 1)
    found = run(spec, Layout(ranks, job), simulate.Given(use, slowed=min(slowed, ranks - 1), factor=1.5))
    assert all(step.seconds > 0 for step in found.steps)


@pytest.mark.parametrize("parallel", [Parallel(attention_tensor=2), Parallel(expert_tensor=2),
                                      Parallel(attention_tensor=4, expert_tensor=2, ranks_per_node=2)])
def test_splits_are_simulated(parallel):
    found = run(model(experts=4), Layout(8, bare(parallel, schedule=Schedule("overlapped", 2))))
    T, H, team = 4, 64, parallel.attention_tensor
    sent = found.steps[-1].traffic.bytes.sum()
    whole = run(model(experts=4), Layout(8, bare(schedule=Schedule("overlapped", 2)))).steps[-1].traffic.bytes.sum()
    team_bytes = 3 * (team - 1) * T * H * (2 + 4)
    rows = 2 * T * 2 * H * parallel.expert_tensor * (2 + (2 if parallel.expert_tensor == 1 else 4))
    assert whole == pytest.approx(2 * T * 2 * H * 4, rel=0.01)
    assert sent == pytest.approx(team_bytes + rows, rel=0.01)


@pytest.mark.parametrize("ranks", [2, 3, 16])
def test_links_that_take_no_time_hold_nobody_up(ranks):
    """Rows that come at the moment at which they are waited for wake whom they are for."""
    ones = Overhead(*[1.0] * 9)
    hw = Hardware("fast", Device(1e30, 1e30, 1e30), Links(1, 1e30, 1e30), ones)
    for turns in ("serial", "overlapped"):
        assert run(model(), Layout(ranks, bare(schedule=Schedule(turns, 2))), hw=hw).steps[-1].seconds > 1


def test_replicas_even_the_load():
    spec = model(experts=4)
    use = simulate.Given(demand.skewed(spec.moe, len(spec.moe_layers), 1.0, 0))
    job = bare(schedule=Schedule("serial", 1))
    bare_run, spread = (run(spec, Layout(8, each), use).steps[-1] for each in
                        (job, replace(job, balance=Balance("replicas"))))
    assert spread.imbalance < bare_run.imbalance


def test_a_slow_rank_slows_all():
    spec = model()
    use = demand.skewed(spec.moe, len(spec.moe_layers), 0.0, 0)
    layout = Layout(4, bare(schedule=Schedule("serial", 1)))
    even, slow = (run(spec, layout, simulate.Given(use, slowed=n, factor=3.0)).steps[-1].seconds for n in (0, 1))
    assert slow > 1.2 * even


def test_classes_of_alike_ranks_take_as_long_as_each_rank_by_itself(monkeypatch):
    spec, job = model(experts=16), bare(schedule=Schedule("overlapped", 2))
    use = simulate.Given(demand.skewed(spec.moe, len(spec.moe_layers), 0.5, 0))
    each = run(spec, Layout(16, job), use).steps[-1]
    monkeypatch.setattr(demand, "EXACT", 1)
    together = run(spec, Layout(16, job), use).steps[-1]
    assert together.seconds == pytest.approx(each.seconds, rel=0.03)
    assert together.traffic.bytes.sum() == pytest.approx(each.traffic.bytes.sum(), rel=1e-3)


@pytest.mark.parametrize("turns", [Schedule("serial", 1), Schedule("serial", 2), Schedule("overlapped", 2)])
@pytest.mark.parametrize("mode", ["alltoallv", "twohop"])
@pytest.mark.parametrize("name", ["h100-ib", "h200"])
def test_the_closed_form_is_near_the_simulation(name, turns, mode):
    spec = replace(model(layers=20, experts=16), hidden=2048)
    even = simulate.Given(demand.skewed(spec.moe, len(spec.moe_layers), 0.0, 0), even=True)
    layout, hw = Layout(16, bare(exchange=Exchange(mode), schedule=turns)), machine.load(name)
    batch = simulate.decode(spec, Load(64, 64, 8, 256), 0)
    step, = simulate.simulate(spec, hw, layout, even, [batch]).steps
    assert estimate(spec, hw, layout, even, batch).seconds == pytest.approx(step.seconds, rel=0.15)


@pytest.mark.parametrize("name", machine.known())
def test_the_hardware_that_comes_with_the_program_can_be_read(name):
    assert machine.load(name).name == name


def test_an_unknown_key_of_hardware_names_the_nearest(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text((machine.FOLDER / "h200.toml").read_text().replace("near_rate", "near_rat"))
    with pytest.raises(JobError, match=r"links\.near_rat: unknown key; did you mean near_rate"):
        machine.load(str(path))


def test_hardware_of_no_name_lists_those_that_there_are():
    with pytest.raises(JobError, match="h100-seed"):
        machine.load("h1000")


@pytest.mark.slow
def test_4096_ranks_of_61_layers_take_less_than_a_minute():
    import resource
    spec = ModelSpec("seed61", 61, 7168, 49152, 4096, Attention(128, 128, 128), Dense(2048, 3), Moe(256, 8, 2048))
    layout = Layout(4096, bare(Parallel(attention_tensor=4), schedule=Schedule("overlapped", 2)))
    begin = time.process_time()
    found = run(spec, layout, load=Load(32, 512, 64, 1024), hw=machine.load("h100-seed"), steps=9)
    assert len(found.steps) == 10 and time.process_time() - begin < 60
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 2 << 20


class TestPages:
    """`hpcmoe predict`, and `check --hardware`."""

    @pytest.fixture
    def words(self, capsys, monkeypatch):
        monkeypatch.setenv("COLUMNS", "200")
        return lambda *words: command(capsys, monkeypatch, *words)

    def test_a_spec_alone_is_enough(self, tmp_path, words):
        found = words("predict", spec_file(tmp_path / "spec.toml"), "--ranks", "2,4", "--steps", "1", "-o",
                      tmp_path / "out.json")
        assert found.code == 0, found.err
        assert "TPOT" in found.out and "GPU-hours" in found.out and "what bounds it" in found.out
        kept = json.loads((tmp_path / "out.json").read_text())["predictions"]
        assert [one["ranks"] for one in kept] == [2, 4] and all(one["rate"] > 0 for one in kept)

    def test_a_job_is_predicted_as_it_is_laid_out(self, tmp_path, words):
        job = job_files(tmp_path, 3, 5)
        found = words("predict", job, "--ranks", "4", "--steps", "1", "--set", "parallel.attention_tensor=2", "--zipf",
                      "0.5", "--slow", "1", "2")
        assert found.code == 0, found.err
        assert "prompts of 4 tokens" in found.out and "attention over 2" in found.out
        assert "1 rank of each group computing 2 times as long" in found.out
        row = found.out.splitlines()[2].split()
        assert row[:6] == ["4", "1", "4", "1", "2", "1"], "two prompts leave one for a rank at most"

    def test_where_expert_parallelism_loses_it_says_so(self, tmp_path, words):
        """Small experts, slow links: each GPU is better off with all of them."""
        path = tmp_path / "slow.toml"
        slow = (machine.FOLDER / "h100-ib.toml").read_text().replace("far_latency = 5e-6", "far_latency = 5e-3")
        path.write_text(slow.replace("ranks_per_node = 8", "ranks_per_node = 1"))
        found = words("predict", spec_file(tmp_path / "spec.toml"), "--ranks", "4", "--steps", "1", "--hardware", path)
        assert "LOSES to" in found.out and "4 data replicas" in found.out

    def test_a_simulation_that_cannot_be_ends_as_a_defect(self, tmp_path, words, monkeypatch):
        monkeypatch.setattr(Network, "check", lambda self, wall, real=Network.check: real(self, wall / 1e9))
        found = words("predict", spec_file(tmp_path / "spec.toml"), "--ranks", "4", "--steps", "1")
        assert found.code == INTERNAL and "a link was busy for" in found.err

    @pytest.mark.parametrize(("more", "said"), [(("--hardware", "h100"), "none of that name"),
                                                (("-o", "out.csv"), "should end in .json"),
                                                (("--set", "schedule.mod=serial"), "did you mean mode")])
    def test_what_is_wrong_is_said(self, tmp_path, words, more, said):
        assert_one_line(words("predict", spec_file(tmp_path / "spec.toml"), *more), 2, said)

    def test_check_lists_the_layouts_and_marks_the_best(self, tmp_path, words):
        found = words("check", spec_file(tmp_path / "spec.toml"), "--ranks", "4", "--gpu-memory", "80GB", "--hardware",
                      "h200")
        rows = [line.split() for line in found.out.splitlines()]
        best, = [row for row in rows if row[:1] == ["best"]]
        assert found.code == 0 and len([row for row in rows if row and row[-1:] == best[-1:]]) >= 1
