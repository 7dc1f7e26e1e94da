"""Ranks that stop or die in the middle of a job: the others say who, and do not wait for ever."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from launched import command, mpiexec
from models import TINY

from hpcmoe import tables
from hpcmoe.files import prompts

PIDS = """
import os, sys
folder = sys.argv.pop()
from hpcmoe.engine import generate
whole = generate.generate
def told(vote, rank, *rest):
    open(f"{folder}/{rank}.pid", "w").write(str(os.getpid()))
    return whole(vote, rank, *rest)
generate.generate = told
from hpcmoe.engine import crew
crew.generate = told
from hpcmoe.__main__ import main
main()
"""
"""The command line, with a note of each rank's process when its work begins."""


@pytest.fixture
def running(tmp_path: Path):
    """A job of many steps on four ranks, and the processes of its ranks."""
    (tmp_path / "spec.toml").write_text(tables.dump(TINY))
    prompts.write(tmp_path / "p.h5", [str(n) for n in range(4000)], [np.array([n % 90], np.int32) for n in range(4000)])
    job = tmp_path / "job.toml"
    job.write_text('model = "spec.toml"\nprompts = "p.h5"\noutput = "out.h5"\n[exchange]\ntimeout = 3.0\n'
                   '[generate]\nmax_new_tokens = 60\nignore_eos = true\n[schedule]\nmax_sequences = 2\n')
    process = subprocess.Popen(command(4, "-c", PIDS, "run", str(job), str(tmp_path)), stderr=subprocess.PIPE,
                               stdout=subprocess.DEVNULL, text=True)
    ranks = wait_for_pids(tmp_path, 4)
    time.sleep(0.5)
    yield process, ranks
    for pid in ranks:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.kill()
    process.wait()


def wait_for_pids(folder: Path, count: int) -> list[int]:
    """The processes of the ranks, once all have begun."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        texts = [path.read_text() if path.exists() else "" for path in (folder / f"{n}.pid" for n in range(count))]
        if all(texts):
            return [int(text) for text in texts]
        time.sleep(0.05)
    raise AssertionError("the ranks did not begin")


@pytest.mark.parametrize("victim", [0, 2])
def test_a_stopped_rank_is_named(running, victim):
    process, ranks = running
    os.kill(ranks[victim], signal.SIGSTOP)
    begin = time.monotonic()
    _, said = process.communicate(timeout=60)
    assert time.monotonic() - begin < 25
    assert process.returncode != 0
    lines = [line for line in said.splitlines() if line.startswith("hpcmoe: error:")]
    assert len(lines) == 1 and f"rank {victim} on " in lines[0] and "does not answer" in lines[0], said
    assert ("layer" in lines[0] and " rows by " in lines[0]) or "vote" in lines[0]


def test_a_killed_rank_ends_the_job(running):
    process, ranks = running
    os.kill(ranks[1], signal.SIGKILL)
    begin = time.monotonic()
    process.communicate(timeout=60)
    assert process.returncode != 0 and time.monotonic() - begin < 15
    assert sys.platform == "linux" and not [pid for pid in ranks if alive(pid)]


def alive(pid: int) -> bool:
    """Whether a process runs; one that waits for its parent does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state not in "ZX"


HUNG = """
import sys, time
from hpcmoe.engine.segments import CpuSegments
whole = CpuSegments._expert
def hung(self, work, *rest):
    from mpi4py import MPI
    if MPI.COMM_WORLD.rank == 1 and work.layer == 2:
        time.sleep(100)
    return whole(self, work, *rest)
CpuSegments._expert = hung
from hpcmoe.__main__ import main
main()
"""


@pytest.mark.parametrize("mode", ["serial", "overlapped"])
def test_a_rank_that_hangs_in_its_arithmetic_ends_the_job(tmp_path, mode):
    (tmp_path / "spec.toml").write_text(tables.dump(TINY))
    prompts.write(tmp_path / "p.h5", list("abcdef"), [np.array([n, 5], np.int32) for n in range(6)])
    job = tmp_path / "job.toml"
    job.write_text('model = "spec.toml"\nprompts = "p.h5"\noutput = "out.h5"\n[exchange]\ntimeout = 2.0\n'
                   f'[schedule]\nmode = "{mode}"\n')
    begin = time.monotonic()
    ended = mpiexec(3, "-c", HUNG, "run", str(job), seconds=60)
    assert ended.returncode != 0 and time.monotonic() - begin < 25
    assert "no progress for" in ended.stderr and "rank 1 on " in ended.stderr, ended.stderr


SLOW = """
import time
from hpcmoe.engine.segments import CpuSegments
whole = CpuSegments._enter
def slow(self, work):
    time.sleep(2.5)
    return whole(self, work)
CpuSegments._enter = slow
from hpcmoe.__main__ import main
main()
"""


def test_arithmetic_that_takes_longer_than_an_exchange_may_ends_nothing(tmp_path):
    (tmp_path / "spec.toml").write_text(tables.dump(TINY))
    prompts.write(tmp_path / "p.h5", list("abcd"), [np.array([n, 5], np.int32) for n in range(4)])
    job = tmp_path / "job.toml"
    job.write_text('model = "spec.toml"\nprompts = "p.h5"\noutput = "out.h5"\n[exchange]\ntimeout = 1.5\n'
                   '[schedule]\nmode = "overlapped"\n[generate]\nmax_new_tokens = 1\n')
    ended = mpiexec(2, "-c", SLOW, "run", str(job), seconds=60)
    assert ended.returncode == 0, ended.stderr
