"""`hpcmoe report --hardware`: a run's own steps, simulated, beside those that were measured."""

from dataclasses import replace

import h5py
import numpy as np
import pytest
from helpers import command, damage, spec_file
from hypothesis import given
from hypothesis import strategies as st
from models import TINY
from ran import put_run

from hpcmoe.config import Generate, Job
from hpcmoe.engine.batch import Sequences
from hpcmoe.files.results import StepTable
from hpcmoe.predict import machine
from hpcmoe.report import beside, measured, rerun
from hpcmoe.report.rerun import Kind, Lengths, Part
from hpcmoe.spec import Attention, Dense, ModelSpec, Moe
from hpcmoe.traffic import Traffic
from hpcmoe.types import STAGES, Outcome

MODEL = ModelSpec("m", 3, 16, 99, 64, Attention(2, 2, 8), Dense(8, 1), Moe(8, 2, 32))


def table(tokens, chosen) -> StepTable:
    """Steps of which nothing else is known."""
    n, none = len(tokens), np.zeros(len(tokens), np.int64)
    return StepTable(none, none, np.arange(n), np.array(tokens, np.int64), np.array(chosen, np.int64), np.ones(n),
                     np.zeros((n, len(STAGES))), np.zeros((n, len(STAGES))), Traffic.none(n))


def job_run(folder, spec=MODEL, job=None, name="out.h5", **given):
    """A run whose model is there."""
    model = str(spec_file(folder / "m.toml", spec))
    return put_run(folder / name, job={"model": model, "prompts": "p.h5", "output": "o.h5", **(job or {})},
                   layers=spec.layers, experts=spec.experts, **given)


@given(st.lists(st.tuples(st.integers(1, 20), st.integers(1, 6)), min_size=1, max_size=8), st.integers(1, 4),
       st.integers(0, 9), st.sampled_from(["generate", "score"]))
def test_lengths_are_those_of_the_sequences(pairs, slots, room, mode):
    """Against all tokens, counted one by one as the engine makes them; answers of n tokens, whatever ends them."""
    sequences = Sequences(replace(TINY, eos=(7,)), Job("m", "p", "o", mode, Generate(99)), slots, slots + room)
    waiting, answers, steps, made = list(range(len(pairs))), [], [], dict.fromkeys(range(len(pairs)), 0)
    while waiting or sequences.active:
        while waiting and sequences.free:
            number = waiting.pop()
            sequences.admit(number, np.full(pairs[number][0], 5, np.int32))
        batch, tokens = sequences.batch(), []
        for number in batch.prompt.tolist():
            made[number] += 1
            tokens.append(7 if made[number] == pairs[number][1] else 5)
        n = len(tokens)
        steps.append((batch.rows, n))
        outcome = Outcome(np.array(tokens, np.int32), np.zeros(n, np.float32), *[np.zeros(0)] * 4)
        answers += sequences.advance(batch, outcome)
    run = type("Run", (), {"lengths": np.array([len(a.tokens) for a in answers]), "steps": table(*zip(*steps)),
                           "scored": mode == "score"})
    found, prompt = rerun.lengths(run), np.mean([length for length, _ in pairs])
    assert found.prompt == pytest.approx(prompt)
    behind = [n for _, new in pairs for n in range(new - 1)]
    if mode == "generate" and behind:
        assert found.behind == pytest.approx(prompt + np.mean(behind))


class TestKinds:
    """Steps of about one size."""

    @given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 9)), max_size=99), st.booleans())
    def test_every_step_is_of_one_kind(self, pairs, scored):
        tokens, chosen = [c + more for c, more in pairs], [c for c, _ in pairs]
        found = rerun.kinds(table(tokens, chosen), scored)
        assert sorted(row for kind in found for row in kind.rows.tolist()) == list(range(len(pairs)))
        assert len(found) <= 2 * rerun.KINDS
        for kind in found:
            assert all((tokens[row] == chosen[row] and not scored) == kind.alone for row in kind.rows)
            assert kind.tokens == pytest.approx(np.mean([tokens[row] for row in kind.rows]))

    @given(st.integers(0, 99), st.integers(1, 16))
    def test_no_token_is_lost_where_sequences_do_not_come_out_even(self, tokens, ranks):
        found = rerun.each(Kind(np.arange(1), True, tokens, tokens), ranks, False, Lengths(5.0, 9.0))
        assert sum(part.sequences * share for part, share in found) * ranks == pytest.approx(tokens)
        assert sum(share for _, share in found) == pytest.approx(1)

    @given(st.integers(1, 4), st.integers(1, 5), st.integers(0, 7), st.integers(2, 30), st.booleans())
    def test_prompts_of_one_length_are_found_in_a_step(self, ranks, prompts, others, length, scored):
        """Each rank has so many prompts, and others that get one token; no others are scored."""
        others = 0 if scored else others
        logits = prompts * (length - 1) if scored else prompts + others
        kind = Kind(np.arange(1), False, ranks * (prompts * length + others), ranks * logits)
        (found, share), = rerun.each(kind, ranks, scored, Lengths(length, 9.0))
        assert found == Part(others, prompts, prompts * length, logits if scored else 0) and share == 1
        batch = rerun.batch(MODEL, found, scored, Lengths(length, 9.0))
        assert (batch.rows, len(batch.wanted)) == (prompts * length + others, logits)
        assert [(s.rows, s.cached) for s in batch.spans] == [(1, 9)] * others + [(length, 0)] * prompts


@pytest.mark.parametrize("given", [{}, {"ranks": 1}, {"stop": "scored"}, {"steps": 1}, {"ranks": 16},
                                   {"job": {"parallel": {"ranks_per_node": 1}, "exchange": {"mode": "twohop"}}},
                                   {"job": {"schedule": {"mode": "overlapped", "micro_batches": 2}}},
                                   {"spec": replace(MODEL, moe=None, dense=Dense(8, 3))}])
def test_a_run_that_took_what_is_predicted_is_off_by_nothing(tmp_path, given):
    run, hw = measured.read(job_run(tmp_path, **given)), machine.load("h100-ib")
    same = replace(run, steps=rerun.rerun(run, hw).steps)
    for block in beside.beside(same, hw):
        assert block.grid and block.picture and {row[-1] for row in block.grid.rows} <= {"+0 %", ""}, block
    both = beside.beside(replace(run, steps=replace(same.steps, wall=same.steps.wall / 2)), hw)
    assert both[0].grid.rows[0][-1] == "+100 %" and both[0].grid.rows[1][-1] == "-50 %"
    assert {row[-1] for row in both[1].grid.rows} == {"+100 %"}


def test_groups_that_stepped_side_by_side(tmp_path):
    """Each with half of the ranks, and tokens for these."""
    run, hw = measured.read(job_run(tmp_path)), machine.load("h100-ib")
    run = replace(run, groups=2, steps=replace(run.steps, group=np.arange(len(run.steps.wall)) % 2))
    again = rerun.rerun(run, hw)
    assert again.layout.group == 2 and again.layout.data == 2
    tokens = sum(part.sequences * share for part, share in rerun.each(again.kinds[0], 2, False, Lengths(5.0, 9.0)))
    assert 2 * tokens == pytest.approx(again.kinds[0].tokens)
    assert {row[-1] for row in beside.beside(replace(run, steps=again.steps), hw)[0].grid.rows} <= {"+0 %", ""}


def test_ranks_lie_on_the_nodes_where_they_were(tmp_path):
    """Two on each host, whatever the hardware has; and bytes are those of their dtype."""
    hw = machine.load("h100-ib")
    found = {dtype: rerun.rerun(measured.read(job_run(tmp_path, job={"compute": {"dtype": dtype}})), hw)
             for dtype in ("bfloat16", "float32")}
    one, two = (again.steps.moved.bytes for again in found.values())
    assert found["float32"].layout.job.parallel.ranks_per_node == 2 and one[1] > 0 and one[2] > 1.5 * one[1]
    assert two[2] == pytest.approx(2 * one[2], rel=0.1)


class TestLeftOut:
    """What is missing is said; the rest of the report is there."""

    @pytest.fixture
    def said(self, capsys, monkeypatch):
        def call(path) -> str:
            ended = command(capsys, monkeypatch, "report", path, "--text", "--hardware", "h200")
            assert (ended.code, ended.err) == (0, "") and "Throughput" in ended.out
            return ended.out.split("Predicted and measured: ")[1].splitlines()[0]
        return call

    def test_the_model_is_gone(self, said, tmp_path):
        path = job_run(tmp_path)
        (tmp_path / "m.toml").unlink()
        assert "left out: " in said(path) and "m.toml" in said(path)

    def test_the_plan_is_gone(self, said, tmp_path):
        assert "plan.h5" in said(job_run(tmp_path, job={"parallel": {"plan": str(tmp_path / "plan.h5")}}))

    def test_a_job_of_another_version(self, said, tmp_path):
        assert "out.h5: keys: unknown key" in said(job_run(tmp_path, job={"keys": 1}))

    def test_where_tokens_went_is_not_told(self, said, tmp_path):
        path = job_run(tmp_path)

        def older(file: h5py.File) -> None:
            del file["routing"]
        damage(path, older)
        assert "does not tell where its tokens went" in said(path)

    def test_shards_that_were_packed(self, said, tmp_path):
        path = job_run(tmp_path)
        damage(path, lambda file: file.attrs.modify("shards", 4))
        assert "was packed from 4 shards" in said(path)

    def test_steps_that_nobody_can_have_run(self, said, tmp_path):
        path = job_run(tmp_path)

        def change(file: h5py.File) -> None:
            for name in ("tokens", "chosen"):
                file[f"timings/{name}"][0] = 1 << 40
        damage(path, change)
        assert "tokens on a rank" in said(path)
        assert "micro-batches: more" in said(job_run(tmp_path, job={"schedule": {"micro_batches": 10**9}}))

    def test_hosts_of_other_ranks(self, said, tmp_path):
        path = job_run(tmp_path)
        damage(path, lambda file: file.attrs.modify("ranks", 8))
        assert "names 4 hosts of 8 ranks" in said(path)

    def test_no_steps(self, said, tmp_path):
        assert "left out: no step took any time" in said(job_run(tmp_path, steps=0))
