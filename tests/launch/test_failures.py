"""How a job on several ranks ends when something is wrong: the exit code, one line, and no rank left behind."""

import re
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
from launched import mpiexec
from models import TINY

from hpcmoe import tables
from hpcmoe.files import model, prompts
from hpcmoe.files.drawn import Drawn

RANKS = 3


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """A right job, to be spoilt."""
    (tmp_path / "spec.toml").write_text(tables.dump(TINY))
    model.write(tmp_path / "model.h5", Drawn(TINY, 0), "float32")
    prompts.write(tmp_path / "prompts.h5", ["a", "b", "c"], [np.arange(1, n, dtype=np.int32) for n in (4, 9, 2)])
    path = tmp_path / "job.toml"
    path.write_text('model = "model.h5"\nprompts = "prompts.h5"\noutput = "out.h5"\n[generate]\nmax_new_tokens = 5\n')
    return path


def run(job: Path, *arguments: str):
    """Runs the job under mpiexec."""
    return mpiexec(RANKS, "-m", "hpcmoe", "run", str(job), *arguments)


def assert_one_line(ended, code: int, words: str) -> None:
    """`ended` failed with `code`, and said so in one line that has `words`."""
    lines = [line for line in ended.stderr.splitlines() if line.startswith("hpcmoe: error:")]
    assert ended.returncode == code, ended.stderr
    assert len(lines) == 1 and re.search(words, lines[0]), ended.stderr
    assert "Traceback" not in ended.stderr and not ended.stdout.strip()


def test_a_right_job_ends_with_0_and_one_summary(job):
    ended = run(job)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("new tokens") == 1 and (job.parent / "out.h5").exists()
    again = run(job)
    assert again.returncode == 0 and again.stdout.count("finished already") == 1 and "new tokens" not in again.stdout


@pytest.mark.parametrize("name", ["model.h5", "prompts.h5"])
def test_a_missing_file(job, name):
    (job.parent / name).unlink()
    assert_one_line(run(job), 3, f"{name} does not exist")


@pytest.mark.parametrize("name", ["model.h5", "prompts.h5"])
def test_a_truncated_file(job, name):
    whole = (job.parent / name).read_bytes()
    (job.parent / name).write_bytes(whole[:len(whole) // 2])
    assert_one_line(run(job), 3, f"{name} is truncated")


def test_a_missing_job(job):
    assert_one_line(run(job.with_name("no.toml")), 2, "no.toml does not exist")


def test_an_unknown_key(job):
    assert_one_line(run(job, "--set", "generate.max_new_token=3"), 2, "did you mean max_new_tokens")


def test_an_unknown_option(job):
    assert_one_line(run(job, "--ovrwrite"), 2, "ovrwrite")


def test_no_prompts(job):
    prompts.write(job.parent / "prompts.h5", [], [])
    assert_one_line(run(job), 3, "there are no prompts")


def test_an_output_of_another_job(job):
    assert run(job).returncode == 0
    before = (job.parent / "out.h5").read_bytes()
    assert_one_line(run(job, "--set", "generate.max_new_tokens=4"), 2, "another job.*--overwrite")
    assert (job.parent / "out.h5").read_bytes() == before
    assert run(job, "--set", "generate.max_new_tokens=4", "--overwrite").returncode == 0


def test_an_output_that_cannot_be_written(job):
    (job.parent / "file").write_text("")
    assert_one_line(run(job, "-o", str(job.parent / "file" / "out.h5")), 2, "is not a folder")


@pytest.mark.parametrize(("tensor", "who"), [("layers/002/experts/005/down", "rank 2 on .*: "),
                                             ("embedding", "error: /")])
def test_a_nan_is_found_by_those_that_read_it(job, tensor, who):
    with h5py.File(job.parent / "model.h5", "r+") as file:
        file[tensor][0, 0] = np.nan
    assert_one_line(run(job), 3, f"{who}.*{tensor} has values that are NaN")


FAULT = """
import sys
from mpi4py import rc
from hpcmoe.engine.segments import CpuSegments
whole = CpuSegments.expert
def broken(self, work):
    from mpi4py import MPI
    if MPI.COMM_WORLD.rank == 1 and work.layer == 2:
        raise ValueError("a defect on one rank")
    return whole(self, work)
CpuSegments.expert = broken
from hpcmoe.__main__ import main
main()
"""


def test_a_defect_on_one_rank_ends_all_with_its_traceback(job):
    begin = time.monotonic()
    ended = mpiexec(RANKS, "-c", FAULT, "run", str(job))
    assert ended.returncode == 70, ended.stderr
    assert time.monotonic() - begin < 10
    assert ended.stderr.count("ValueError: a defect on one rank") == 1
    assert "internal error on rank 1 of 3" in ended.stderr and not (job.parent / "out.h5").exists()


def test_without_mpiexec_it_is_one_rank(job):
    command = [sys.executable, "-m", "hpcmoe", "run", str(job)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr
    with h5py.File(job.parent / "out.h5") as file:
        assert file.attrs["ranks"] == 1
