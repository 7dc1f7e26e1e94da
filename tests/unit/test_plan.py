"""plan.h5 and topology.h5, and the verb that plans."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from helpers import (
    MOE,
    answer,
    assert_one_line,
    command,
    damage,
    model_file,
    origin,
    spec_file,
    step_time,
)
from routes import WEIGHTS, gated, measured, nodes, trace
from test_place import is_valid

from hpcmoe.errors import InputError
from hpcmoe.files import parts, plan, prompts, results, topology
from hpcmoe.files.bias import Biased
from hpcmoe.files.parts import Part
from hpcmoe.files.plan import Plan
from hpcmoe.placement.policy import POLICIES, Case
from hpcmoe.report import plan as page
from hpcmoe.report.plan import read as read_run
from hpcmoe.slots import Routing

RANKS, TOKENS = 4, 60


def routing(ranks: int = RANKS) -> Routing:
    """Of the model `MOE`, whose first layer is dense."""
    found = trace(gated, ranks, MOE.moe.experts, MOE.moe.top_k, TOKENS, layers=2)
    return Routing(np.concatenate([np.zeros_like(found.load[:1]), found.load]), found.rank,
                   np.concatenate([np.full_like(found.expert[:, :1], -1), found.expert], axis=1))


def results_file(output: Path, model: Path, ranks: int = RANKS, hosts: int = 2,
                 biased: bool = False) -> Path:
    """Results of a run of `MOE` on so many ranks, whose tokens went as `routing` says; `biased` as if by a bias."""
    went = routing(ranks)
    job = (f'model = {json.dumps(str(model))}\nprompts = "p.h5"\noutput = "out.h5"\n[compute]\n'
           'dtype = "bfloat16"\n')
    told = replace(origin(ranks=ranks), job=job, hosts=tuple(f"n{rank * hosts // ranks}" for rank in range(ranks)))
    for rank in range(ranks):
        mine = went.rank == rank
        part = Part((answer(rank, 5),), went.load[:, rank], (step_time(0, 30), step_time(1, 90)), 0, None,
                    went.load[:, rank].sum(axis=1), went.expert[mine], rank, ranks,
                    Biased(went.load[:, rank].sum(axis=1) // 8, 9, (9.0, 18.0)) if biased else None)
        parts.write(output, 0, rank, 0, part, told)
    results.pack(output, prompts.Prompts(np.zeros(ranks, np.int32), np.arange(ranks + 1), ("a",) * ranks), told, str)
    return output


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A folder with model.h5 and out.h5, to work in."""
    monkeypatch.chdir(tmp_path)
    results_file(tmp_path / "out.h5", model_file(tmp_path))
    return tmp_path


@pytest.fixture
def hpcmoe(capsys, monkeypatch):
    """Words -> what the command came to."""
    return lambda *words: command(capsys, monkeypatch, *words)


def a_plan(*sizes: int, policy: str = "load", exchange: str = "twohop") -> Plan:
    """For ranks on nodes of these sizes."""
    given = Case(routing(), nodes(*sizes or (2, 2)), WEIGHTS, 4, exchange)
    placements = POLICIES[policy](given)
    return Plan(MOE.name, MOE.moe.experts, placements, given.topology.node, policy, 3, exchange, "assumed", WEIGHTS,
                given.predict(placements))


def test_a_plan_is_read_as_it_was_written(tmp_path):
    whole = a_plan()
    plan.write(tmp_path / "p.h5", whole)
    found = plan.read(tmp_path / "p.h5")
    for name in ("model", "experts", "policy", "seed", "exchange", "links", "weights", "ranks"):
        assert getattr(found, name) == getattr(whole, name)
    for one, other in zip(found.placements, whole.placements, strict=True):
        assert one.ranks == other.ranks == RANKS
        assert np.array_equal(one.rank, other.rank) and np.array_equal(one.expert, other.expert)
    for name in ("rows", "bytes", "crossing", "seconds"):
        assert np.array_equal(getattr(found.predicted, name), getattr(whole.predicted, name))
    assert found.node.tolist() == [0, 0, 1, 1] and found.predicted.layers.tolist() == [1, 2]
    with h5py.File(tmp_path / "p.h5") as file:
        assert file["predicted/seconds"].attrs["units"] == "s" and file["weight/name"].attrs["long_name"]


def change(name, value):
    """A dataset or an attribute gets another value."""
    def do(file):
        if name in file.attrs:
            file.attrs[name] = value
        else:
            before = file[name][()]
            del file[name]
            file[name] = value(before) if callable(value) else value
    return do


def put(values, at, value):
    values = np.array(values)
    values[at] = value
    return values


def drop(name):
    return lambda file: file.__delitem__(name)


WRONG = {
    "an expert without a slot": (change("expert/data", lambda v: put(v, v == v[0], 3 - v[0])), "an expert has no slot"),
    "an expert beyond E": (change("expert/data", lambda v: put(v, 0, 4)), "beyond its 4 ranks and 4 experts"),
    "a negative expert": (change("expert/data", lambda v: put(v, 0, -1)), "beyond its 4 ranks and 4 experts"),
    "a rank beyond R": (change("rank/data", lambda v: put(v, -1, 4)), "beyond its 4 ranks"),
    "ranks out of order": (change("rank/data", lambda v: v[::-1]), "do not ascend by rank"),
    "an expert twice": (change("rank/data", lambda v: 0 * v), "a rank has an expert twice"),
    "fewer offsets": (change("rank/offsets", lambda v: put(v, 1, 1)), "differ in their layers"),
    "offsets beyond": (change("expert/offsets", lambda v: put(v, -1, 99)), "do not fit expert/data"),
    "nodes from 1": (change("node", lambda v: v + 1), "node does not number"),
    "no nodes": (change("node", lambda v: v[:0]), "node does not number"),
    "fewer nodes": (change("node", lambda v: v[:2]), "beyond its 2 ranks"),
    "more experts": (change("experts", 5), "an expert has no slot"),
    "no experts": (change("experts", 0), "beyond its 4 ranks and 0 experts"),
    "another exchange": (change("exchange", "pigeon"), "pigeon should be flat or twohop"),
    "other links": (change("links", "felt"), "felt should be measured or assumed"),
    "a missing dataset": (drop("predicted/rows"), "has no dataset predicted/rows"),
    "a wrong shape": (change("predicted/rows", lambda v: v[:, :2]), "predicted/rows does not fit"),
    "seconds that cannot be": (change("predicted/seconds", lambda v: put(v, (1, 0), np.nan)), "values that cannot be"),
    "other weights": (change("weight/value", lambda v: v[:3]), "weight has other names"),
    "floats for ranks": (change("rank/data", lambda v: v * 1.0), "rank/data is float64, not whole numbers"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_with_a_plan_is_said(what, tmp_path, hpcmoe):
    path, (do, words) = tmp_path / "p.h5", WRONG[what]
    plan.write(path, a_plan())
    damage(path, do)
    with pytest.raises(InputError, match=words):
        plan.read(path)
    assert_one_line(hpcmoe("show", path), 3, str(path))


def test_a_plan_without_slots_is_none(tmp_path):
    plan.write(tmp_path / "p.h5", replace(a_plan(), placements=a_plan().placements[:1] * 3))
    with pytest.raises(InputError, match="has no slots"):
        plan.read(tmp_path / "p.h5")


def test_a_run_tells_its_tokens_rows_and_seconds(files):
    run = read_run(files / "out.h5")
    assert run.tokens == pytest.approx(60)  # steps of 30 and 90 tokens on each of 4 ranks
    assert run.row == 2 * MOE.hidden
    seconds = 2 * step_time(0).stages[4]
    assert run.compute == pytest.approx(RANKS * seconds / (2 * TOKENS * MOE.moe.top_k))


@pytest.mark.parametrize("policy", POLICIES)
def test_each_policy_writes_a_plan_that_show_shows(files, hpcmoe, policy):
    made = hpcmoe("plan", "out.h5", "-o", "plan.h5", "--policy", policy)
    assert (made.code, made.err) == (0, ""), made
    for word in ("linear", "load", "topology", "is written", "plan.h5", "tiny-moe, 4 experts on 4 ranks of 2 nodes"):
        assert word in made.out
    found = plan.read(files / "plan.h5")
    dense, *moe = found.placements
    assert not len(dense.rank) and all(is_valid(placement, 4, 1) for placement in moe)
    assert (found.policy, found.model, found.links) == (policy, "tiny-moe", "assumed")
    assert found.node.tolist() == [0, 0, 1, 1]
    shown = hpcmoe("show", "plan.h5")
    assert shown.code == 0
    for word in ("plan, made by hpcmoe", f"policy {policy}", "seconds to compute a row", "are assumed", "other nodes"):
        assert word in shown.out
    assert "1 more layers" in hpcmoe("show", "plan.h5", "-n", "1").out


def test_the_same_command_writes_the_same_plan(files, hpcmoe):
    for name in ("a.h5", "b.h5"):
        assert hpcmoe("plan", "out.h5", "-o", name, "--slots", 2).code == 0
    a, b = plan.read(files / "a.h5"), plan.read(files / "b.h5")
    assert all(np.array_equal(x.expert, y.expert) and np.array_equal(x.rank, y.rank)
               for x, y in zip(a.placements, b.placements, strict=True))


def test_other_ranks_than_the_run_had(files, hpcmoe):
    assert hpcmoe("plan", "out.h5", "-o", "plan.h5", "--ranks", 6, "--ranks-per-node", 4, "--policy", "load").code == 0
    found = plan.read(files / "plan.h5")
    assert found.ranks == 6 and found.node.tolist() == [0, 0, 0, 0, 1, 1]
    assert len(found.placements[1].rank) == 6  # spare ranks hold replicas
    assert_one_line(hpcmoe("plan", "out.h5", "-o", "p.h5", "--ranks", 6), 2, "out.h5", "4 ranks", "--ranks-per-node")


def test_a_measured_topology_is_gone_by(files, hpcmoe):
    topology.write(files / "t.h5", measured(nodes(3, 2, far=(1e-3, 1e6))))
    assert hpcmoe("plan", "out.h5", "-o", "plan.h5", "--topology", "t.h5").code == 0
    found = plan.read(files / "plan.h5")
    assert found.ranks == 5 and found.links == "measured" and found.weights.far_rate == pytest.approx(1e6)
    assert "measure them" not in hpcmoe("plan", "out.h5", "-o", "plan.h5", "--topology", "t.h5").out
    assert_one_line(hpcmoe("plan", "out.h5", "-o", "p.h5", "--topology", "t.h5", "--ranks", 4), 2, "t.h5", "5 ranks")
    assert_one_line(hpcmoe("plan", "out.h5", "-o", "t.h5", "--topology", "t.h5"), 2, "t.h5", "another output")


def test_auto_takes_the_exchange_that_is_quicker(files, hpcmoe):
    taken = {}
    for exchange in ("flat", "twohop", "auto"):
        assert hpcmoe("plan", "out.h5", "-o", "plan.h5", "--exchange", exchange).code == 0
        taken[exchange] = plan.read(files / "plan.h5")
    least = min(("flat", "twohop"), key=lambda exchange: taken[exchange].predicted.total)
    assert taken["auto"].exchange == least and taken["auto"].predicted.total == taken[least].predicted.total
    assert hpcmoe("plan", "out.h5", "-o", "plan.h5", "--ranks-per-node", 4).code == 0
    assert plan.read(files / "plan.h5").exchange == "flat"  # one node


def test_experts_need_room(files, hpcmoe):
    result = hpcmoe("plan", "out.h5", "-o", "p.h5", "--ranks", 2, "--ranks-per-node", 1, "--slots", 1)
    assert_one_line(result, 2, "2 ranks", "cannot hold 4", "--slots 2")


def test_without_scipy_the_other_policies_plan(files, hpcmoe, monkeypatch):
    for name in ("scipy", "scipy.optimize", "scipy.sparse"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(page, "find_spec", lambda name: None)
    made = hpcmoe("plan", "out.h5", "-o", "plan.h5", "--policy", "load")
    assert made.code == 0 and "topology" not in made.out.replace("bench topology", "").replace("--topology", "")
    assert_one_line(hpcmoe("plan", "out.h5", "-o", "p.h5"), 2, "SciPy", "hpcmoe[plan]", "--policy load")


def test_a_model_that_is_gone_or_another_is_named(files, hpcmoe):
    spec_file(files / "other.toml", replace(MOE, moe=replace(MOE.moe, top_k=1)))
    (files / "model.h5").rename(files / "m.h5")
    assert_one_line(hpcmoe("plan", "out.h5", "-o", "p.h5"), 3, "model.h5", "does not exist")
    (files / "out.h5").unlink()
    results_file(files / "out.h5", files / "other.toml")
    assert_one_line(hpcmoe("plan", "out.h5", "-o", "p.h5"), 3, "out.h5", "does not fit tiny-moe")


@pytest.mark.parametrize("hosts", [8, 20_000])
def test_hosts_of_packed_shards_are_those_of_one(hosts, files):
    names = [f"n{rank * 2 // RANKS % 2}" for rank in range(RANKS)] * (hosts // RANKS)

    def change(file):
        del file["host"]
        file["host"] = np.array(names, object)
        file.attrs["ranks"] = hosts
    damage(files / "out.h5", change)
    assert read_run(files / "out.h5").node.tolist() == [0, 0, 1, 1]


def test_fewer_hosts_than_ranks_are_refused(files, hpcmoe):
    def change(file):
        del file["host"]
        file["host"] = np.array(["n0"], object)
    damage(files / "out.h5", change)
    assert_one_line(hpcmoe("plan", "out.h5", "-o", "p.h5"), 3, "names 1 hosts of 4 ranks")


def test_more_ranks_than_plans_are_for_are_refused(files, hpcmoe, monkeypatch):
    monkeypatch.setattr(page, "MOST_RANKS", 3)
    assert_one_line(hpcmoe("plan", "out.h5", "-o", "p.h5"), 3, "4 ranks, and plans are for 3 at most")


def test_results_without_routing_or_job_are_refused(files, hpcmoe):
    damage(files / "out.h5", lambda file: file.attrs.modify("job", "nonsense ="))
    assert_one_line(hpcmoe("plan", "out.h5", "-o", "p.h5"), 3, "out.h5", "attribute job is no job")
    damage(files / "out.h5", lambda file: file.__delitem__("routing"))
    assert_one_line(hpcmoe("plan", "out.h5", "-o", "p.h5"), 3, "out.h5", "does not tell where its tokens went")
    assert_one_line(hpcmoe("plan", "model.h5", "-o", "p.h5"), 3, "is a model file where a results file is expected")
