"""How a job on several ranks ends when something is wrong: the exit code, one line, and no rank left behind."""

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from launched import Running, alive, mpiexec, wait_for
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
segment = sys.argv.pop()
from mpi4py import rc
from hpcmoe.engine.segments import CpuSegments
whole = getattr(CpuSegments, segment)
def broken(self, work, *rest):
    from mpi4py import MPI
    if MPI.COMM_WORLD.rank == 1 and work.layer == 2:
        raise ValueError("a defect on one rank")
    return whole(self, work, *rest)
setattr(CpuSegments, segment, broken)
from hpcmoe.__main__ import main
main()
"""


@pytest.mark.parametrize(("segment", "mode"), [("dispatch", "serial"), ("_expert", "serial"), ("_gate", "overlapped"),
                                               ("_shared", "overlapped"), ("_expert", "overlapped")])
def test_a_defect_on_one_rank_ends_all_with_its_traceback(job, segment, mode):
    """On the main thread and on the worker's."""
    spec = replace(TINY, moe=replace(TINY.moe, shared_hidden=8))
    (job.parent / "spec.toml").write_text(tables.dump(spec))
    ended = mpiexec(RANKS, "-c", FAULT, "run", str(job), "--set", "model=" + str(job.parent / "spec.toml"),
                    "--set", f"schedule.mode={mode}", segment)
    assert ended.returncode == 70, ended.stderr
    assert "ValueError: a defect on one rank" in ended.stderr
    assert ended.stderr.count("internal error on rank 1 of 3") == 1 and not (job.parent / "out.h5").exists()


def test_without_an_mpi_library(job):
    environment = os.environ | {"MPI4PY_LIBMPI": "/nowhere/libmpi.so"}
    ended = subprocess.run([sys.executable, "-m", "hpcmoe", "run", str(job)], capture_output=True, text=True,
                           env=environment, timeout=60)
    assert_one_line(ended, 4, "MPI cannot be loaded.*MPI4PY_LIBMPI")


def test_another_spec_under_the_same_name_is_another_job(job):
    spec = job.parent / "spec.toml"
    settings = ("--set", f"model={spec}")
    assert run(job, *settings).returncode == 0
    spec.write_text(tables.dump(replace(TINY, layers=3)))
    assert_one_line(run(job, *settings), 2, "another job")


def test_a_folder_that_moved_holds_the_same_job(job):
    assert run(job).returncode == 0
    moved = job.parent.rename(job.parent.with_name("moved"))
    assert "finished already" in run(moved / "job.toml").stdout


def test_a_killed_run_is_continued_on_another_number_of_ranks(job):
    """Killed in the middle, with some prompts committed."""
    count = 300
    prompts.write(job.parent / "prompts.h5", [str(n) for n in range(count)],
                  [np.array([n % 90, 1], np.int32) for n in range(count)])
    settings = ("--set", "checkpoint.every=0", "--set", "schedule.max_sequences=2", "--set", "compute.dtype=float32")
    running, parts = Running(RANKS, job, *settings), job.parent / "out.h5.parts"
    pids = running.ranks()
    wait_for(lambda: len(list(parts.glob("0000-*.h5"))) >= 20)
    running.process.kill()
    running.wait(60)
    before = len(list(parts.glob("0000-*.h5")))
    wait_for(lambda: not any(map(alive, pids)))  # the ranks end with their launcher
    ended = mpiexec(2, "-m", "hpcmoe", "run", str(job), *settings)
    assert ended.returncode == 0, ended.stderr
    with h5py.File(job.parent / "out.h5") as file:
        assert before >= 20 and file["prompt"][:].tolist() == list(range(count))
        assert set(file["timings/attempt"][:]) == {0, 1}


def test_without_mpiexec_it_is_one_rank(job):
    command = [sys.executable, "-m", "hpcmoe", "run", str(job)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr
    with h5py.File(job.parent / "out.h5") as file:
        assert file.attrs["ranks"] == 1
