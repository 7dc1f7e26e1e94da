"""Choices that are steered by a bias: against the slow oracle, and what files and pages say of it."""

import io

import h5py
import numpy as np
import pytest
from helpers import answer, origin, pack
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from test_kernels import moes

from hpcmoe import reference
from hpcmoe.engine.bias import updated
from hpcmoe.engine.compare import SCORED, Scores, some
from hpcmoe.errors import InputError
from hpcmoe.files import bias, parts, results
from hpcmoe.files.bias import Biased
from hpcmoe.files.parts import Part
from hpcmoe.files.prompts import Prompts
from hpcmoe.model.gate import gate, steered
from hpcmoe.model.weights import Gate
from hpcmoe.report.show import print_bias


@settings(max_examples=100)
@given(moes(), st.integers(0, 9), st.integers(0, 999))
def test_weights_stay_those_of_the_scores_and_what_moved_is_counted(moe, T, seed):
    rng = np.random.default_rng(seed)
    weights = Gate(rng.standard_normal((moe.experts, 5)).astype(np.float32),
                   rng.standard_normal(moe.experts).astype(np.float32) if moe.selection_bias else None)
    x = rng.standard_normal((T, 5)).astype(np.float32)
    more = rng.standard_normal(moe.experts).astype(np.float32)
    route, moved = steered(moe, weights, more, x)
    plain, own = gate(moe, weights, x), 0 if weights.bias is None else weights.bias
    for t in range(T):
        logits = (x[t] @ weights.weight.T).astype(np.float64)
        expert, weight = reference.choose(moe, logits, own + more, lambda v: v)
        assert np.array_equal(route.expert[t], expert) and np.allclose(route.weight[t], weight, rtol=1e-4)
    assert moved == sum(e not in plain.expert[t] for t in range(T) for e in route.expert[t])
    assert steered(moe, weights, np.zeros_like(more), x)[1] == 0


def test_the_bias_of_experts_with_many_rows_falls():
    rows = np.array([[0, 0, 0], [3, 0, 0], [1, 2, 3]])
    found = updated(np.ones((3, 3), np.float32), rows, 0.25)
    assert found.tolist() == [[1, 1, 1], [0.75, 1.25, 1.25], [1.25, 1, 0.75]] and found.dtype == np.float32


def test_results_say_what_a_bias_did(tmp_path):
    output = tmp_path / "out.h5"
    for rank in range(2):
        part = Part((answer(rank, 5),), np.full((2, 4), 10), (), bias=Biased(np.array([0, 8]), rank, (1.0, 0.5)))
        parts.write(output, 0, rank, 0, part, origin())
    pack(output, 2)
    with h5py.File(output) as file:
        found = results.read(file, output).bias
    assert found.moved.tolist() == [0, 16] and (found.tokens, found.nats) == (1, (2.0, 1.0))
    page = io.StringIO()
    print_bias(Console(file=page, width=200), found, np.full((2, 4), 20))
    assert "moved 10.00 % of the assignments to other experts, 20.00 % in a layer at most; perplexity of 1 tokens of " \
        "the prompts 7.3891 with the last one, 2.7183 without" in page.getvalue()


def test_results_without_a_bias_say_nothing_of_one(tmp_path):
    output = tmp_path / "out.h5"
    parts.write(output, 0, 0, 0, Part((answer(0, 5),), np.ones((2, 4), np.int64), ()), origin())
    pack(output, 1)
    with h5py.File(output) as file:
        assert results.read(file, output).bias is None and "bias" not in file


@pytest.mark.parametrize("wrong", [Biased(np.array([1])), Biased(np.array([1, -1])), Biased(np.zeros(2, int), -1),
                                   Biased(np.zeros(2, int), 1, (np.nan, 1.0))])
def test_what_cannot_be_is_refused(wrong, tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        bias.put(file, wrong)
        with pytest.raises(InputError, match="bias has values"):
            bias.take(file, 2, tmp_path / "x.h5")


def test_nothing_scored_has_no_perplexity():
    assert np.isnan(Biased(np.zeros(2, int)).perplexity).all()


def test_prompts_that_are_scored_are_spread_over_all_and_have_something_to_score():
    lengths = np.array([1, 100, 1, 300] * 1000)
    prompts = Prompts(np.zeros(lengths.sum(), np.int32), np.concatenate([[0], np.cumsum(lengths)]), ("",) * 4000)
    rows = some(prompts, np.arange(0, 4000))
    assert (lengths[rows] > 1).all() and SCORED / 2 < lengths[rows].sum() < 2 * SCORED and max(rows) > 3800
    assert some(prompts, np.array([0, 2])) == [] and some(prompts, np.array([0, 1])) == [1]


def test_first_tokens_are_not_scored():
    scores = Scores()
    scores.add([answer(0, 5, 6, 7)])
    assert scores.tokens == 2
