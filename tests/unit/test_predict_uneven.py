"""Slow ranks and skewed traces in predictions: a step by hand, what is said of them, and of what is left out."""

import json

import numpy as np
import pytest
from helpers import command, spec_file
from test_predict import PLAIN, SMALL

from hpcmoe.config import Exchange, Schedule
from hpcmoe.files import results
from hpcmoe.predict import cost, demand, simulate
from hpcmoe.predict.layout import Layout, bare
from hpcmoe.slots import Routing
from hpcmoe.spec import Attention, ModelSpec, Moe

WIDE = ModelSpec("wide", 2, 2048, 1000, 512, Attention(16, 16, 64), None, Moe(8, 1, 16384))
"""Reading its experts is what takes time."""


@pytest.mark.parametrize("factor", [1.0, 3.0])
def test_a_slow_rank_by_hand(factor):
    """As `test_two_ranks_and_one_layer_by_hand`: all wait for the slow one at each exchange, so that its arithmetic
    counts; nothing else takes longer."""
    batch = simulate.batch_of(SMALL, [(1, 9)] * 4)
    layout = Layout(2, bare(schedule=Schedule("serial", 1), exchange=Exchange("alltoallv")))
    slow = simulate.Given(demand.skewed(SMALL.moe, 1, 0.0, 0), even=True, slowed=1, factor=factor)
    step, = simulate.simulate(SMALL, PLAIN, layout, slow, [batch]).steps
    works = [cost.attention(SMALL, PLAIN, 0, 1, batch.spans), cost.gate(SMALL, PLAIN, 4), cost.pack(PLAIN, 4, 8),
             cost.combine(SMALL, PLAIN, 4, 1), cost.head(SMALL, PLAIN, 4)]
    computes = sum(work.bytes for work in works) / 1e9 + (2 * 96 + 2 * 4 * 28) / 1e9
    assert step.seconds == pytest.approx(factor * computes + 2 * 40 / 1e8 + 2 * 2 * 16 / 1e8, rel=1e-9)


def test_slow_ranks_of_many_are_a_class_of_their_own():
    found = demand.classes(64, 3, 2.0)
    assert found.of.sum() == 64 and found.of[0] == 3
    assert found.slow.tolist() == [2.0, *[1.0] * (len(found) - 1)]


@pytest.fixture
def words(capsys, monkeypatch, tmp_path):
    """Of `hpcmoe predict` of `WIDE`, with more words."""
    monkeypatch.setenv("COLUMNS", "200")
    path = spec_file(tmp_path / "wide.toml", WIDE)
    return lambda *more: command(capsys, monkeypatch, "predict", path, "--steps", "2", "--hardware", "h100-ib", *more)


def trace(*rows):
    """A run of one rank in which each expert got so many rows, of a token each."""
    load = np.array(rows, np.int64)
    expert = np.repeat(np.arange(len(rows)), load).astype(np.int16)
    return Routing(np.stack([load[None]] * WIDE.layers), np.zeros(len(expert), np.int32),
                   np.repeat(expert[:, None, None], WIDE.layers, axis=1))


@pytest.mark.parametrize(("rows", "said"), [((100,) * 8, "is the best of"), ((900, *(10,) * 7), "LOSES to")])
def test_where_a_skewed_trace_makes_expert_parallelism_lose_it_says_so(words, monkeypatch, tmp_path, rows, said):
    monkeypatch.setattr(results, "routing", lambda path: trace(*rows))
    (tmp_path / "run.h5").touch()
    found = words("--ranks", "8", "--routing", tmp_path / "run.h5", "-o", tmp_path / "said.json")
    assert found.code == 0, found.err
    assert f"experts used as in {tmp_path / 'run.h5'}" in found.out
    verdict, = [line for line in found.out.splitlines() if line.startswith("8 ranks: ")]
    assert said in verdict and verdict.startswith("8 ranks: 1 expert a GPU, EP 8"), verdict
    one, = json.loads((tmp_path / "said.json").read_text())["predictions"]
    if said == "LOSES to":
        assert one["better"]["rate"] > one["rate"] and "data replicas: " in verdict
    else:
        assert one["better"] is None


def test_what_is_left_out_is_said(words):
    for asked, said in (("mode=bias", 'balance.mode = "bias" is left out'),
                        ("replan_every=9", "balance.replan_every: slots hold")):
        found = words("--ranks", "8", "--set", f"balance.{asked}")
        assert found.code == 0 and sum(line.startswith(said) for line in found.out.splitlines()) == 1, found.err
    assert "left out" not in words("--ranks", "8").out


def test_a_slow_rank_is_told_of(words):
    found = words("--ranks", "8", "--slow", "2", "1.5")
    assert "; 2 ranks of each group computing 1.5 times as long; simulated" in found.out
