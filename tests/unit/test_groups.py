"""Independent groups of ranks (`parallel.data`): what is planned for them, what files say of them, and who reads it."""

from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from helpers import MOE, answer, assert_one_line, command, job_files, model_file, origin, step_time
from ran import put_run
from test_plan import RANKS, results_file, routing

from hpcmoe.config import Job, Parallel
from hpcmoe.engine import fit
from hpcmoe.engine.memory import plan_sizes
from hpcmoe.engine.seats import group_size
from hpcmoe.errors import InputError, JobError
from hpcmoe.files import h5, parts, results
from hpcmoe.files import routing as files_routing
from hpcmoe.files.parts import Part
from hpcmoe.report import bins, measured, over_time, overview, scaling
from hpcmoe.report.plan import read as read_run
from hpcmoe.report.show import print_traffic, stage_table
from hpcmoe.slots import Routing

JOB = Job("m", "p", "o")


def with_groups(count: int, **more) -> Job:
    """A job in so many groups."""
    return replace(JOB, parallel=Parallel(data=count, **more))


class TestPlanning:
    """Before a run."""

    def test_groups_are_of_one_size(self):
        assert [group_size(12, with_groups(n)) for n in (1, 2, 3, 12)] == [12, 6, 4, 1]
        line = r"^parallel.data = 5: 12 ranks are no 5 independent groups .* start a multiple of 5"
        with pytest.raises(JobError, match=line):
            group_size(12, with_groups(5))

    def test_prompts_are_spread_over_the_ranks_of_all_groups(self):
        lengths = np.full(24, 5)
        assert plan_sizes(MOE, with_groups(1), lengths, 8) == plan_sizes(MOE, with_groups(4), lengths, 2)

    def test_nodes_count_where_a_group_has_several(self):
        """So that memory is planned for two hops, or not."""
        nodes = [0, 0, 0, 0, 1, 1, 1, 1]
        assert fit._on_nodes(with_groups(2), nodes) == with_groups(2)
        assert fit._on_nodes(with_groups(1), nodes) == with_groups(1, ranks_per_node=4)
        assert fit._on_nodes(with_groups(2), [0, 0, 0, 1, 1, 1, 2, 2]) == with_groups(2, ranks_per_node=3)

    def test_check_tells_them(self, capsys, monkeypatch, tmp_path):
        job = job_files(tmp_path, 3, 7, 5)
        many, one = (command(capsys, monkeypatch, "check", job, "--ranks", ranks, "--set", f"parallel.data={data}",
                             "--set", "schedule.max_sequences=2").out for ranks, data in ((4, 2), (2, 1)))
        assert "2 independent groups of 2 ranks, E = 4: 2 experts per rank" in " ".join(many.split())
        table = "Memory of the fullest rank"
        assert many.partition(table)[2] == one.partition(table)[2]  # what one group needs
        ended = command(capsys, monkeypatch, "check", job, "--ranks", 5, "--set", "parallel.data=2")
        assert_one_line(ended, 2, "parallel.data = 2", "5 ranks", "multiple of 2")

    def test_nobody_shrinks(self, capsys, monkeypatch, tmp_path):
        ended = command(capsys, monkeypatch, "check", job_files(tmp_path, 3), "--set", "parallel.data=2", "--set",
                        "checkpoint.on_failure=shrink")
        assert_one_line(ended, 2, "parallel.data = 2", "checkpoint.on_failure = shrink")

    def test_a_plan_is_for_the_ranks_of_a_group(self, capsys, monkeypatch, tmp_path):
        monkeypatch.chdir(tmp_path)
        job = job_files(tmp_path, 3, 7, 5)
        results_file(tmp_path / "earlier.h5", model_file(tmp_path))
        assert command(capsys, monkeypatch, "plan", "earlier.h5", "-o", "p.h5", "--policy", "load").code == 0
        words = "check", job, "--ranks", 8, "--set", "parallel.plan=p.h5", "--set"
        assert command(capsys, monkeypatch, *words, "parallel.data=2").code == 0
        ended = command(capsys, monkeypatch, *words, "parallel.data=4")
        assert_one_line(ended, 3, "ranks of each independent group: 4 there, 2 here")


def piece(rank: int, *steps, attempt: int = 0, ranks: int = 4, groups: int = 2) -> Part:
    """A part of one rank."""
    return Part((), np.ones((2, 4), np.int64), steps, attempt, rank=rank, ranks=ranks, groups=groups)


class TestSteps:
    """Groups step side by side, attempts follow each other."""

    def table(self) -> results.StepTable:
        """Two steps of 1 s in group 0 and one of 5 s in group 1, then another attempt with one group, 3 s."""
        return results.tabulate([
            piece(0, step_time(0, wall=1.0), step_time(1, wall=0.5)), piece(1, step_time(0), step_time(1, wall=1.0)),
            piece(2, step_time(0, wall=5.0)), piece(3, step_time(0, wall=4.0)),
            piece(0, step_time(0, wall=3.0), attempt=1, ranks=1, groups=1)])

    def test_each_groups_are_put_together(self):
        found = self.table()
        assert list(zip(found.attempt, found.group, found.step, found.wall, found.tokens)) == [
            (0, 0, 0, 1.0, 6), (0, 0, 1, 1.0, 6), (0, 1, 0, 5.0, 6), (1, 0, 0, 3.0, 3)]

    def test_seconds_are_those_of_the_slowest_group(self):
        assert self.table().seconds == 5 + 3
        assert results.tabulate([]).seconds == 0 and results.tabulate([]).slowest.shape == (7,)

    def test_means_are_over_all_ranks(self):
        found = self.table()
        each = np.arange(1, 8) / 100  # of step_time: seconds by stage in parts of the wall
        np.testing.assert_allclose(found.average, each * ((0.75 + 0.75 + 4.5) / 2 + 3))
        np.testing.assert_allclose(found.slowest, each * (5 + 3))
        assert stage_table(found).row_count == 7

    def test_traffic_is_weighted_and_bytes_are_summed(self):
        found = self.table()
        moved = replace(found.traffic, seconds=np.array([1.0, 1.0, 4.0, 2.0]), bytes=np.ones((4, 3), np.int64))
        total = replace(found, traffic=moved).moved
        assert total.seconds == (1 + 1 + 4) / 2 + 2 and total.bytes.tolist() == [4, 4, 4]

    def test_files_tell_the_group(self, tmp_path):
        output = tmp_path / "o.h5"
        for rank in range(4):
            given = replace(piece(rank, step_time(0, wall=1.0 + rank)), answers=(answer(rank, 1),))
            path = parts.write(output, 0, rank, 0, given, replace(origin(ranks=4), groups=2))
            assert parts.read(path).group == rank // 2
        results.pack(output, results.Prompts(np.zeros(4, np.int32), np.arange(5), ("a",) * 4),
                     replace(origin(ranks=4), groups=2), str)
        with h5.reading(output, "results") as file:
            assert results.steps(file, output).group.tolist() == [0, 1] and file.attrs["groups"] == 2
        assert scaling.read(output).seconds == 4.0

    def test_files_of_versions_without_groups_have_one(self, tmp_path, capsys, monkeypatch):
        path = results_file(tmp_path / "out.h5", model_file(tmp_path))
        with h5py.File(path, "r+") as file:
            del file["timings/group"], file.attrs["groups"]
        with h5.reading(path, "results") as file:
            assert set(results.steps(file, path).group) == {0} and parts.groups(file, path) == (RANKS, 1)
        assert command(capsys, monkeypatch, "show", path).code == 0

    @pytest.mark.parametrize("groups", [0, 3, -1])
    def test_groups_that_cannot_be_are_refused(self, tmp_path, groups):
        path = results_file(tmp_path / "out.h5", model_file(tmp_path))
        with h5py.File(path, "r+") as file:
            file.attrs["groups"] = groups
        with h5.reading(path, "results") as file, pytest.raises(InputError, match="groups of one size"):
            parts.groups(file, path)


class TestReports:
    """Of finished runs."""

    def grouped(self, folder: Path) -> tuple[measured.Measured, measured.Measured]:
        """A run on 4 ranks, and one with the same steps twice, in two groups of 4 ranks."""
        one, two = put_run(folder / "one.h5", ranks=4), put_run(folder / "two.h5", ranks=8)
        with h5py.File(one) as source, h5py.File(two, "r+") as file:
            file.attrs["groups"] = 2
            for name in ("timings", "exchange/step"):
                for key, values in source[name].items():
                    if key != "stage":
                        del file[f"{name}/{key}"]
                        file[f"{name}/{key}"] = np.concatenate([values[:], values[:]])
            file["timings/group"][...] = np.repeat([0, 1], len(source["timings/step"]))
        return measured.read(one), measured.read(two)

    def test_two_groups_do_twice_as_much_in_the_same_time(self, tmp_path):
        one, two = self.grouped(tmp_path)
        assert two.seconds == pytest.approx(one.seconds) and two.rate == pytest.approx(2 * one.rate)
        assert float(two.steps.moved.exposed) == pytest.approx(float(one.steps.moved.exposed))
        np.testing.assert_allclose(two.steps.average, one.steps.average)
        np.testing.assert_allclose(two.steps.slowest, one.steps.slowest)
        at = bins.timeline(two.steps)
        assert at[-1] == pytest.approx(one.seconds)
        along = (bins.along(run.steps.tokens, run.steps, at) for run in (one, two))
        np.testing.assert_allclose(2 * next(along), next(along), rtol=1e-6)
        assert overview.facts(two)["ranks"] == "8 in 2 independent groups"
        assert over_time._starts(two) == pytest.approx(over_time._starts(one))

    def test_none_of_a_groups_values_is_lost(self, tmp_path):
        """Where a group is done before the other."""
        steps = TestSteps().table()
        for at in (bins.timeline(steps), np.linspace(0, steps.seconds, 6)):
            assert bins.along(steps.tokens, steps, at).sum() == pytest.approx(steps.tokens.sum())
        found = bins.along(np.array([1.0, 1.0, 5.0, 3.0]), steps, np.array([0.0, 1.0, 2.0, 5.0, 8.0]))
        np.testing.assert_allclose(found, [1 + 1, 1 + 1, 3, 3])

    def test_a_page_is_made(self, tmp_path, capsys, monkeypatch):
        self.grouped(tmp_path)
        ended = command(capsys, monkeypatch, "report", tmp_path / "two.h5")
        assert ended.code == 0 and "8 in 2 independent groups" in ended.out, ended


class TestRouting:
    """What a plan is made of."""

    @pytest.mark.parametrize("groups", [1, 2, 4])
    def test_ranks_stand_for_those_with_their_place(self, groups):
        whole = routing()
        whole = replace(whole, computed=whole.load.sum(axis=2))
        found = files_routing.folded(whole, groups)
        for rank in range(RANKS // groups):
            alike = [rank + group * RANKS // groups for group in range(groups)]
            assert np.array_equal(found.load[:, rank], whole.load[:, alike].sum(axis=1))
            assert np.array_equal(found.computed[:, rank], whole.computed[:, alike].sum(axis=1))
            assert np.array_equal(found.rank == rank, np.isin(whole.rank, alike))
        assert np.array_equal(found.expert, whole.expert)

    def test_a_load_that_was_kept_for_all_ranks_together_stays(self):
        large = Routing(np.ones((2, 1, 4), np.int64), np.array([3], np.int32), np.zeros((1, 2, 2), np.int16),
                        np.ones((2, 4), np.int64))
        found = files_routing.folded(large, 2)
        assert found.load.shape == (2, 1, 4) and found.computed.tolist() == [[2, 2]] * 2 and found.rank.tolist() == [1]

    def test_plan_takes_all_groups_as_one(self, tmp_path, capsys, monkeypatch):
        monkeypatch.chdir(tmp_path)
        path = results_file(tmp_path / "out.h5", model_file(tmp_path))
        one = read_run(path)
        with h5py.File(path, "r+") as file:
            file.attrs["groups"] = 2
            file["timings/group"][...] = [0, 1]
        two = read_run(path)
        assert (two.routing.load.shape[1], len(two.node)) == (RANKS // 2, RANKS // 2)
        assert np.array_equal(two.routing.load.sum(axis=1), one.routing.load.sum(axis=1))
        ended = command(capsys, monkeypatch, "plan", "out.h5", "-o", "p.h5", "--policy", "load")
        assert ended.code == 0 and "4 experts on 2 ranks" in ended.out
        shown = command(capsys, monkeypatch, "show", "out.h5").out
        assert "4 ranks in 2 independent groups on" in " ".join(shown.split())


def test_nothing_is_printed_of_exchanges_that_were_none(capsys):
    print_traffic(None, results.tabulate([]))  # type: ignore[arg-type]
    assert not capsys.readouterr().out
