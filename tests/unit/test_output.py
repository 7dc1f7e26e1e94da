"""A job's output: what a run may delete, what it goes on from, and what it must leave alone."""

import os
import socket
import subprocess
from pathlib import Path

import numpy as np
import pytest
from helpers import answer, job_files, origin

from hpcmoe import config
from hpcmoe.config import Job
from hpcmoe.engine import inputs, output
from hpcmoe.engine.versions import compare, versions
from hpcmoe.errors import JobError
from hpcmoe.files import begun, parts, results
from hpcmoe.files.parts import Part
from hpcmoe.types import Begun


@pytest.fixture
def job(tmp_path) -> Job:
    return config.load(job_files(tmp_path, 3, 5))


def finish(job: Job, identity: str = "", pack: bool = True) -> None:
    """Leaves what a run of the job leaves, or a run of another identity."""
    found = inputs.read(job)
    path, name = Path(job.output), identity or found.identity(job)
    answers = tuple(answer(n, 1) for n in range(2 if pack else 1))
    parts.write(path, 0, 0, 0, Part(answers, np.ones((3, 4), np.int64), ()), origin(name))
    if pack:
        results.pack(path, found.prompts, origin(name), lambda tokens: "")


def cut(job: Job, length: int) -> None:
    """Leaves the first bytes of the output."""
    path = Path(job.output)
    path.write_bytes(path.read_bytes()[:length])


def look(job: Job) -> output.Left:
    found = inputs.read(job)
    return output.look(job, found.identity(job), found.model.spec.vocabulary)


class TestLook:
    """What earlier runs left."""

    def test_nothing(self, job):
        left = look(job)
        assert (left.finished, left.attempt, left.done.tolist()) == (False, 0, [])

    def test_parts(self, job):
        finish(job, pack=False)
        left = look(job)
        assert (left.finished, left.attempt, left.done.tolist()) == (False, 1, [0])

    def test_results(self, job):
        finish(job)
        assert look(job).finished

    def test_a_damaged_output_says_what_replaces_it(self, job):
        finish(job)
        cut(job, -50)
        with pytest.raises(JobError, match=r"truncated.*--overwrite"):
            look(job)

    @pytest.mark.parametrize("mode", [0o555, 0o000])
    @pytest.mark.skipif(os.getuid() == 0, reason="root may write anywhere")
    def test_a_folder_that_may_not_be_written(self, mode, tmp_path):
        job = config.load(job_files(tmp_path, 3), ["output=shut/out.h5"])
        (tmp_path / "shut").mkdir(mode=mode)
        with pytest.raises(JobError, match="permission denied"):
            look(job)

    def test_a_file_in_the_place_of_the_parts(self, job, tmp_path):
        (tmp_path / "out.h5.parts").write_text("")
        with pytest.raises(JobError, match=r"out\.h5\.parts is not a folder"):
            look(job)


    def test_what_has_begun_and_is_not_answered(self, job):
        finish(job, pack=False)
        identity = inputs.read(job).identity(job)
        kept = [Begun(n, np.array([5, 6], np.int32), np.array([-1, -2], np.float32)) for n in (0, 1)]
        begun.write(Path(job.output), 1, 0, 0, kept, origin(identity))
        left = look(job)
        assert [one.prompt for one in left.begun] == [1] and left.attempt == 2
        assert left.words() == "unfinished: 1 prompts are answered, 1 more have begun, a run goes on from there"

    def test_a_part_that_was_cut_off_is_set_aside_by_a_run_and_not_by_a_look(self, job):
        finish(job, pack=False)
        part, = parts.files(Path(job.output))
        part.write_bytes(part.read_bytes()[:-1])
        left = look(job)
        assert not len(left.done) and part.name in left.warnings()[0] and part.exists()
        output.tidy(job, left)
        assert not parts.files(Path(job.output)) and part.with_name(part.name + ".damaged").exists()
        assert look(job).attempt == 1 and not look(job).damaged


def test_other_libraries_and_kernels_are_told_of():
    here = versions("MPI 4")
    assert compare([]) == compare([here]) == compare([versions("MPI 5")]) == []
    warning, = compare([here, here.replace("numpy ", "numpy 1")])
    assert "last bits" in warning and "numpy 1" in warning


class TestClear:
    """`--overwrite` replaces results, and nothing else."""

    @pytest.mark.parametrize("identity", ["", "another job"])
    @pytest.mark.parametrize("pack", [True, False], ids=["results", "parts"])
    def test_what_runs_left_goes(self, identity, pack, job, tmp_path):
        finish(job, identity, pack)
        output.clear(job)
        assert not look(job).finished and not list(tmp_path.glob("out.h5*"))

    @pytest.mark.parametrize("length", [-1, 5000])
    def test_damaged_results_go(self, length, job, tmp_path):
        finish(job)
        cut(job, length)
        output.clear(job)
        assert not (tmp_path / "out.h5").exists()

    @pytest.mark.parametrize("name", ["model.h5", "prompts.h5", "job.toml", "notes.txt", "empty", "cut.h5"])
    def test_what_is_no_result_stays(self, name, job, tmp_path):
        (tmp_path / "notes.txt").write_text("of a year")
        (tmp_path / "empty").write_text("")
        (tmp_path / "cut.h5").write_bytes((tmp_path / "model.h5").read_bytes()[:-9])
        other = config.load(tmp_path / "job.toml", [f"output={tmp_path / name}"])
        before = (tmp_path / name).read_bytes()
        with pytest.raises(JobError, match="give another output"):
            output.clear(other)
        assert (tmp_path / name).read_bytes() == before

    @pytest.mark.parametrize("link", [os.symlink, os.link])
    def test_a_link_to_the_model_is_the_model(self, link, job, tmp_path):
        link(tmp_path / "model.h5", tmp_path / "out.h5")
        with pytest.raises(JobError, match="which is read"):
            output.clear(job)
        assert (tmp_path / "out.h5").exists()

    def test_files_of_others_among_the_parts_stay(self, job, tmp_path):
        finish(job, pack=False)
        (tmp_path / "out.h5.parts" / "notes.txt").write_text("of a year")
        output.clear(job)
        assert [p.name for p in (tmp_path / "out.h5.parts").iterdir()] == ["notes.txt"]


def test_a_run_tidies_what_dead_ones_began(job, tmp_path):
    dead = subprocess.Popen(["true"])
    dead.wait()
    (tmp_path / f".out.h5.{socket.gethostname()}-{dead.pid}.tmp").write_text("")
    output.tidy(job, look(job))
    assert not list(tmp_path.glob(".out.h5*"))
