"""`hpcmoe report`: tables, comparison, files, and what is refused."""

from dataclasses import replace

import h5py
import numpy as np
import pytest
import tomli_w
from helpers import assert_one_line, command, damage, job_files, put_prompts, spec_file
from hypothesis import given
from hypothesis import strategies as st
from ran import put_run

from hpcmoe.files import plan, results
from hpcmoe.files.plan import Plan, Prediction, Weights
from hpcmoe.predict import machine
from hpcmoe.report import bins, expert_load, latency, measured, roofline
from hpcmoe.report import report as verb
from hpcmoe.slots import Placement
from hpcmoe.spec import ModelSpec
from hpcmoe.tables import build, parse
from hpcmoe.types import STAGES

FIGURES = ("throughput", "latency", "first-token", "stages", "exchange", "imbalance", "experts", "traffic", "links")


@pytest.fixture
def report(capsys, monkeypatch):
    """`report` with words -> its page; it must end well."""

    def call(*words) -> str:
        result = command(capsys, monkeypatch, "report", *words)
        assert (result.code, result.err) == (0, ""), result
        return result.out
    return call


@pytest.fixture
def quick(monkeypatch):
    """Pictures are drawn, but not made into pixels, which takes most of the time."""
    figure = pytest.importorskip("matplotlib.figure", reason="not installed: matplotlib")
    drawn = []

    def png(picture) -> bytes:
        made = figure.Figure()
        picture.draw(made)
        assert made.axes and all(axes.get_xlabel() or axes.get_ylabel() for axes in made.axes), picture.name
        drawn.append(picture.name)
        return b"\x89PNG" + bytes(30)
    monkeypatch.setattr(verb.style, "png", png)
    return drawn


class TestFiles:
    """What is written, and where."""

    def test_a_page_and_its_pictures(self, report, tmp_path):
        pytest.importorskip("matplotlib", reason="not installed: matplotlib")
        page = report(put_run(tmp_path / "out.h5"))
        assert f"page: {tmp_path / 'out.report.html'}" in page
        found = sorted(path.stem for path in (tmp_path / "out.report").iterdir())
        assert found == sorted(FIGURES)
        assert (tmp_path / "out.report.html").read_text("utf-8").count("<img ") == len(FIGURES)
        assert all(path.read_bytes().startswith(b"\x89PNG") for path in (tmp_path / "out.report").iterdir())

    def test_a_name_of_ones_own(self, report, quick, tmp_path):
        report(put_run(tmp_path / "out.h5"), "-o", tmp_path / "new" / "page.html")
        assert (tmp_path / "new" / "page.html").exists() and (tmp_path / "new" / "page" / "stages.png").exists()
        assert not (tmp_path / "out.report.html").exists()

    def test_text_alone_writes_nothing(self, report, tmp_path):
        path = put_run(tmp_path / "out.h5")
        page = report(path, "--text")
        assert [p.name for p in tmp_path.iterdir()] == ["out.h5"]
        for word in ("Throughput", "Latency of a token", "Load of the experts", "Traffic between ranks", *STAGES):
            assert word in page

    def test_without_matplotlib_the_tables_are_there(self, report, monkeypatch, tmp_path):
        monkeypatch.setattr(verb, "find_spec", lambda name: None)
        page = report(put_run(tmp_path / "out.h5"))
        assert "Throughput" in page and "pip install 'hpcmoe[plot]'" in page
        assert not (tmp_path / "out.report.html").exists()


class TestMistakes:
    """One line each."""

    def test_files_that_are_none(self, capsys, monkeypatch, tmp_path):
        (tmp_path / "a.txt").write_text("no\n" * 99)
        put_prompts(tmp_path / "p.h5", [1])
        assert_one_line(command(capsys, monkeypatch, "report", tmp_path / "x.h5"), 3, "does not exist")
        assert_one_line(command(capsys, monkeypatch, "report", tmp_path / "a.txt"), 3, "not an HDF5 file")
        assert_one_line(command(capsys, monkeypatch, "report", tmp_path / "p.h5"), 3, "prompts file where a results")

    def test_a_newer_format(self, capsys, monkeypatch, tmp_path):
        path = put_run(tmp_path / "out.h5")
        damage(path, lambda file: file.attrs.modify("format_version", 99))
        assert_one_line(command(capsys, monkeypatch, "report", path), 3, "format version 99", "update hpcmoe")

    def test_a_file_twice(self, capsys, monkeypatch, tmp_path):
        path = put_run(tmp_path / "out.h5")
        (tmp_path / "link.h5").symlink_to(path)
        assert_one_line(command(capsys, monkeypatch, "report", path, path), 2, "given twice")
        assert_one_line(command(capsys, monkeypatch, "report", path, tmp_path / "link.h5"), 2, "the same file")

    def test_outputs_that_cannot_be(self, capsys, monkeypatch, tmp_path):
        path = put_run(tmp_path / "out.h5")
        (tmp_path / "there.report").write_text("a file where the pictures should go")
        for output, word in ((path, "should end in .html"), (tmp_path / "there.report.html", "is not a folder")):
            assert_one_line(command(capsys, monkeypatch, "report", path, "-o", output), 2, word)

    def test_hardware_that_is_none(self, capsys, monkeypatch, tmp_path):
        path, mine = put_run(tmp_path / "out.h5"), tmp_path / "mine.toml"
        mine.write_text((machine.FOLDER / "h200.toml").read_text().replace("near_rate", "near_rat"))
        for words, said in (("h100", "there is none of that name: take one of gh200"), ("", "none of that name"),
                            (tmp_path / "no.toml", "does not exist"), (mine, "did you mean near_rate")):
            assert_one_line(command(capsys, monkeypatch, "report", path, "--hardware", words), 2, said)

    @pytest.mark.parametrize("name, value", [("timings/wall", np.nan), ("timings/mean", -1.0), ("timings/max", np.inf),
                                             ("timings/tokens", -5), ("exchange/step/bytes", 2**62),
                                             ("exchange/layer/seconds", 1e300), ("first_token", -1.0),
                                             ("first_token", np.inf)])
    def test_values_that_cannot_be(self, capsys, monkeypatch, tmp_path, name, value):
        path = put_run(tmp_path / "out.h5")

        def change(file: h5py.File) -> None:
            file[name][0] = value
        damage(path, change)
        assert_one_line(command(capsys, monkeypatch, "report", path, "--text"), 3, str(path), "cannot be")

    def test_a_job_that_is_none(self, capsys, monkeypatch, tmp_path):
        path = put_run(tmp_path / "out.h5")
        damage(path, lambda file: file.attrs.modify("job", "= ="))
        assert_one_line(command(capsys, monkeypatch, "report", path), 3, "attribute job is no job")


class TestRuns:
    """What is left out says why, whatever the run was."""

    @pytest.mark.parametrize("given, why", [
        ({"ranks": 1}, "one rank has nobody to wait for"), ({"steps": 0}, "no step took any time"),
        ({"layers": 1}, "no rows went to experts"), ({"layers": 2, "experts": 0}, "no rows went to experts"),
        ({"stop": "scored"}, "prompts were scored"), ({"prompts": 0}, "tokens/s"),
        ({"kept": 1}, "keep the rows together"),
        ({"moved": True}, "the way to experts, not to ranks"), ({"steps": 1}, "1 step"),
        ({"ranks": 3, "experts": 700, "steps": 500}, "512 cells"), ({"ranks": 600, "experts": 600}, "512 x 512 cells")])
    def test_any_run(self, report, quick, tmp_path, given, why):
        page = report(put_run(tmp_path / "out.h5", **given))
        assert why in page and "nan" not in page.split() and "inf" not in page.split()
        assert (tmp_path / "out.report.html").read_text("utf-8").count("<img ") == len(quick)

    def test_a_file_of_a_version_that_did_not_count(self, report, tmp_path):
        path = put_run(tmp_path / "out.h5")

        def older(file: h5py.File) -> None:
            del file["routing"], file["exchange"], file["first_token"]
        damage(path, older)
        page = report(path, "--text")
        assert "does not tell where its tokens went" in page and "no seconds of exchanges were recorded" in page
        assert "First token of a prompt: left out: the file does not tell" in page

    def test_numbers_are_those_of_the_file(self, report, tmp_path):
        path = put_run(tmp_path / "out.h5", seed=3)
        with h5py.File(path) as file:
            steps, load = results.steps(file, path), file["load"][()]
        page = report(path, "--text")
        assert f"{steps.chosen.sum() / steps.wall.sum():,.1f} new tokens/s on average" in page
        share = load[1:].max(axis=1) / load[1:].mean(axis=1)
        assert f"{share.mean():.2f} times the rows of the layer's mean" in page
        assert f"{100 * (1 - steps.traffic.exposed.sum() / steps.traffic.seconds.sum()):.0f} % of that" in page

    def test_a_real_run(self, report, quick, capsys, monkeypatch, tmp_path):
        """As the program writes it; its model is there, so the roofline is too."""
        job = job_files(tmp_path, 3, 5, rest='[generate]\nmax_new_tokens = 4\n[compute]\ndtype = "float32"\n')
        command(capsys, monkeypatch, "run", job)
        page = report(tmp_path / "out.h5", "--hardware", "h100-seed")
        assert "Roofline of the experts: a rank's experts reached" in page and "% of what 400.0 TFLOP/s" in page
        assert {"predicted", "predicted-steps"} <= set(quick) and "on h100-seed (-" in page
        told, = [line.split() for line in page.splitlines() if line.startswith("bytes, own rank")]
        assert abs(int(told[-2])) <= 2, "as many bytes as the engine counted"
        assert quick[-1] == "roofline" and "first-token" in quick
        plain = report(tmp_path / "out.h5", "--text")
        assert "Without a picture: --hardware names a machine" in plain
        assert "Predicted and measured: left out: nothing is predicted without --hardware" in plain


class TestCompared:
    """Two files, and more."""

    def test_what_changed_and_what_it_did(self, report, tmp_path):
        one = put_run(tmp_path / "a.h5", job={"model": "m.h5", "output": "a.h5", "schedule": {"mode": "serial"}},
                      identity="x\n# model 1\n# prompts 1\n")
        two = put_run(tmp_path / "b.h5", job={"model": "m.h5", "output": "b.h5", "schedule": {"mode": "overlapped"}},
                      identity="x\n# model 2\n# prompts 1\n", versions="hpcmoe 2, MPI 1",
                      hosts=("other0", "other1"), speed=2.0)
        page = report(one, two, "--text")
        changed = page.split("What changed:")[1].split("What it did:")[0]
        words = changed.split()
        assert "schedule.mode" in changed and "serial" in words and "overlapped" in words
        assert "uuid of the model" in changed and "hpcmoe" in words and "other0," in words
        for same in ("output", "uuid of the prompts", "MPI", "ranks"):
            assert same not in changed
        assert "run 2 makes 2.00 times as many tokens/s" in page
        stages = page.split("Stages beside each other:")[1].split("\n\n")[0]
        assert all(f"{name} " in stages for name in STAGES) and stages.count("x 0.50") == len(STAGES)

    def test_nothing_changed(self, report, tmp_path):
        page = report(put_run(tmp_path / "a.h5"), put_run(tmp_path / "b.h5"), "--text")
        assert "What changed: nothing that the files tell" in page and "1.00 times as many" in page

    def test_scaling(self, report, quick, tmp_path):
        runs = [put_run(tmp_path / f"{ranks}.h5", ranks=ranks, seed=ranks) for ranks in (2, 4, 8)]
        page = report(*runs)
        assert quick[0] == "scaling-strong" and {f"run-{n}-stages" for n in (1, 2, 3)} <= set(quick)
        assert "Speed by ranks, strong" in page and "from 2 to 8 ranks" in page and "weak" not in page
        assert page.count("Throughput:") == 3 and "What changed" not in page

    def test_runs_of_different_jobs_have_no_curves(self, report, tmp_path):
        page = report(put_run(tmp_path / "a.h5"), put_run(tmp_path / "b.h5", identity="b\n", ranks=2), "--text")
        assert "Speed by ranks: left out" in page and "belongs to another job" in page

    def test_many(self, report, tmp_path):
        runs = [put_run(tmp_path / f"{n}.h5", steps=3, ranks=2) for n in range(5)]
        page = report(*runs, "--text")
        assert "run 5" in page and "all had 2 ranks" in page


class TestBins:
    """Few values that say what many did."""

    @given(st.integers(0, 2**31), st.integers(1, 900))
    def test_nothing_is_lost(self, seed, steps):
        rng = np.random.default_rng(seed)
        wall = rng.random(steps) * (rng.random(steps) < 0.8)
        values = rng.integers(0, 1000, steps)
        at = bins.edges(wall)
        found = bins.spread(values, wall, at)
        assert len(found) <= bins.MOST and found.sum() == pytest.approx(values.sum())
        assert (np.diff(at) >= 0).all() and np.isfinite(bins.over(found, at)).all()

    @given(st.integers(0, 2**31), st.integers(1, 900))
    def test_a_slow_reference(self, seed, steps):
        """Each step gives each bin its share by time."""
        rng = np.random.default_rng(seed)
        wall, values = rng.random(steps) + 1e-3, rng.random(steps)
        at = bins.edges(wall)
        ends = np.concatenate([[0.0], np.cumsum(wall)])
        overlap = np.maximum(0, np.minimum(ends[1:, None], at[None, 1:]) - np.maximum(ends[:-1, None], at[None, :-1]))
        expected = (values[:, None] * overlap / wall[:, None]).sum(axis=0)
        np.testing.assert_allclose(bins.spread(values, wall, at), expected, rtol=1e-6, atol=1e-9)

    @given(st.integers(0, 2**31), st.integers(1, 900))
    def test_extremes_stay(self, seed, count):
        values = np.random.default_rng(seed).random(count)
        first, least, middle, largest = bins.extremes(values)
        assert (least.min(), largest.max()) == (values.min(), values.max())
        assert first[0] == 0 and (least <= middle).all() and (middle <= largest).all()

    @given(st.integers(0, 2**31), st.integers(1, 40), st.integers(1, 40), st.integers(1, 12))
    def test_maps(self, seed, rows, columns, most):
        values = np.random.default_rng(seed).integers(0, 100, (rows, columns))
        added, largest = (bins.shrink(values, how, most) for how in (np.add, np.maximum))
        assert added.sum() == values.sum() and largest.max() == values.max()
        assert added.shape == (min(rows, most), min(columns, most))

    @given(st.lists(st.tuples(st.floats(0, 10), st.integers(0, 5)), min_size=1, max_size=30), st.floats(0.01, 1))
    def test_percentiles(self, pairs, share):
        values, weights = np.array([v for v, _ in pairs]), np.array([w for _, w in pairs])
        every = np.sort(np.repeat(values, weights))
        found = bins.percentile(values, weights, share)
        if not len(every):
            assert np.isnan(found)
        else:
            assert found == every[max(0, int(np.ceil(share * len(every) - 1e-9)) - 1)]


def test_traffic_goes_where_experts_lie(tmp_path):
    run = measured.read(put_run(tmp_path / "out.h5", ranks=3, experts=8))
    rows = run.routing.load.sum(axis=0)
    expected = np.zeros((3, 3), np.int64)
    for source in range(3):
        for expert in range(8):
            expected[source, expert * 3 // 8] += rows[source, expert]
    found = expert_load._between(rows, run.routing.computed.sum(axis=0))
    np.testing.assert_array_equal(found, expected)
    assert expert_load._between(rows, run.routing.computed.sum(axis=0)[::-1]) is None


def test_points_of_the_roofline(tmp_path):
    """One step, by hand."""
    spec = build(ModelSpec, parse('name = "m"\nlayers = 3\nhidden = 16\nvocabulary = 99\ncontext = 9\n[attention]\n'
                                  'heads = 2\nkv_heads = 2\nhead_dim = 8\n[dense]\nhidden = 8\nlayers = 1\n[moe]\n'
                                  'experts = 8\ntop_k = 2\nhidden = 32\nshared_hidden = 8\n'))
    job = {"model": str(spec_file(tmp_path / "m.toml", spec)), "compute": {"dtype": "bfloat16"}}
    run = measured.read(put_run(tmp_path / "out.h5", ranks=2, steps=1, job=job))
    assert measured.model(run) == spec
    T, seconds = int(run.steps.tokens[0]), run.steps.mean[0, STAGES.index("expert")]
    flops = 2 * 6 * 16 * (2 * 32 + 8) * T / 2
    touched = 8 * (1 - (6 / 8) ** T) / 2
    moved = 2 * 2 * (3 * 16 * (touched * 32 + 8) + 2 * 16 * 2 * T / 2)
    found = roofline.points(run, spec, spec.moe)
    assert found.flops[0] == pytest.approx(flops / seconds) and found.intensity[0] == pytest.approx(flops / moved)


def test_what_a_plan_expected(report, quick, tmp_path):
    """The plan of a run in its own order: the same rows, so nothing is off."""
    run = measured.read(put_run(tmp_path / "first.h5"))
    rows, tokens = run.routing.computed.astype(np.float64), float(run.steps.tokens.sum())
    sums = run.steps.traffic.total().bytes
    weights = Weights(tokens / 4, 8.0, 1e-6, 1e-6, 1e9, 1e-6, 1e9)
    order = Placement(4, np.arange(8, dtype=np.int32) // 2, np.arange(8, dtype=np.int32))
    none = Placement(4, np.empty(0, np.int32), np.empty(0, np.int32))
    said = Prediction(rows, np.stack([0 * sums, sums, 0 * sums]).astype(np.float64), np.zeros(3), np.zeros((3, 4)))
    plan.write(tmp_path / "plan.h5", Plan("m", 8, (none, order, order), np.zeros(4, np.int32), "linear", 0, "flat",
                                          "assumed", weights, said))
    page = report(put_run(tmp_path / "out.h5", job={"parallel": {"plan": str(tmp_path / "plan.h5")}}))
    assert "a layer is off by 0 % (median), 0 % at most" in page and quick[-1] == "planned"
    told = page.split("Expected by the plan, and measured:")[1].split("\n\n")[0].splitlines()[2:]
    assert len(told) == 2 + 3 and all(line.rstrip().endswith(" 1.00") for line in told)
    other = report(put_run(tmp_path / "other.h5", ranks=2, job={"parallel": {"plan": str(tmp_path / "plan.h5")}}))
    assert "is of another model or other ranks by now" in other
    assert "the job had no plan" in report(tmp_path / "first.h5")


def test_the_model_is_another_by_now(tmp_path):
    path = put_run(tmp_path / "out.h5", job={"model": str(spec_file(tmp_path / "m.toml"))})
    assert "is another model by now" in roofline.roofline(measured.read(path), None).says


def test_a_token_takes_as_long_as_its_step(tmp_path):
    run = measured.read(put_run(tmp_path / "out.h5"))
    every = np.repeat(run.steps.wall, run.steps.chosen)
    found = latency.latencies(run)
    np.testing.assert_allclose(found, [np.percentile(every, p, method="inverted_cdf") for p in latency.PERCENTILES])
    assert np.isnan(latency.latencies(replace(run, steps=replace(run.steps, chosen=run.steps.chosen * 0)))).all()


def test_first_tokens_are_those_of_the_file(report, quick, tmp_path):
    waits = [0.25, *[2.0] * 6, *[3.0] * 3, np.nan, 40.0]
    page = report(put_run(tmp_path / "out.h5", first=waits))
    assert "half of the prompts had their first token within 2.0 s, 99 % within 40.0 s, the last within 40.0 s" in page
    assert "Of 1 of 12 prompts it is not known" in page and "first-token" in quick
    assert "first token of a prompt, 50 and 99 %  2.0 s, 40.0 s" in page
    both = report(tmp_path / "out.h5", put_run(tmp_path / "b.h5", first=[4.0] * 12), "--text")
    assert "first token of a prompt, 50 %" in both and "x 2.00" in both.split("first token of a prompt, 50 %")[1]


def test_job_keys_that_are_no_tables(tmp_path):
    assert measured.flat(parse(tomli_w.dumps({"a": 1, "b": {"c": [1, 2], "d": {"e": "x"}}}))) == {
        "a": 1, "b.c": [1, 2], "b.d.e": "x"}


