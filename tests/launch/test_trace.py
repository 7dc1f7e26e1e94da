"""`hpcmoe run --trace` as a user types it."""

from pathlib import Path

import numpy as np
import pytest
import traces
from launched import mpiexec
from models import TINY

from hpcmoe import tables
from hpcmoe.files import prompts

RANKS = 2
SMALL = """
import hpcmoe.engine.trace as trace
trace.MOST = 400
from hpcmoe.__main__ import main
main()
"""


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """A job that needs no file but its prompts."""
    (tmp_path / "spec.toml").write_text(tables.dump(TINY))
    prompts.write(tmp_path / "p.h5", ["a", "b", "c"], [np.arange(1, n, dtype=np.int32) for n in (4, 9, 2)])
    path = tmp_path / "job.toml"
    path.write_text('model = "spec.toml"\nprompts = "p.h5"\noutput = "out.h5"\n[generate]\nmax_new_tokens = 5\n')
    return path


@pytest.mark.parametrize("mode", ["serial", "overlapped"])
def test_the_trace_lies_beside_the_output(job, mode):
    ended = mpiexec(RANKS, "-m", "hpcmoe", "run", str(job), "--trace", "--set", f"schedule.mode={mode}")
    assert ended.returncode == 0, ended.stderr
    assert traces.wrong(traces.read(job.parent / "out.trace.json"), RANKS) == []
    assert "out.trace.json covers" in ended.stderr and "% hidden" in ended.stdout


def test_a_full_trace_says_what_it_covers(job):
    ended = mpiexec(RANKS, "-c", SMALL, "run", str(job), "--trace")
    assert ended.returncode == 0 and "then it was full" in ended.stderr, ended.stderr
    found = traces.read(job.parent / "out.trace.json")
    assert found["otherData"]["whole_steps"] < found["otherData"]["steps"]
    assert len(traces.spans(found)) == 400 and traces.wrong(found, RANKS) == []


def test_a_place_that_cannot_be_written_is_found_before_the_work(job):
    (job.parent / "out.trace.json").mkdir()
    ended = mpiexec(RANKS, "-m", "hpcmoe", "run", str(job), "--trace")
    assert ended.returncode == 2 and "out.trace.json is a folder" in ended.stderr, ended.stderr
    assert not (job.parent / "out.h5").exists()


BROKEN = """
import os, errno
from hpcmoe.files import trace
def full(*arguments):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
trace._write = full
from hpcmoe.__main__ import main
main()
"""


def test_a_disk_that_fills_costs_the_trace_and_not_the_results(job):
    ended = mpiexec(RANKS, "-c", BROKEN, "run", str(job), "--trace")
    lines = [line for line in ended.stderr.splitlines() if line.startswith("hpcmoe: error:")]
    assert ended.returncode == 2 and len(lines) == 1 and "No space left" in lines[0], ended.stderr
    assert (job.parent / "out.h5").exists() and not (job.parent / "out.trace.json").exists()
