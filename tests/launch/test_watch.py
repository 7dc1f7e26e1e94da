"""Ranks that stop or die in the middle of a job: the others say who, and do not wait for ever."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from launched import alive, at_once, command, mpiexec, wait_for
from models import TINY

from hpcmoe import tables
from hpcmoe.files import prompts

PIDS = """
import os, sys
folder = sys.argv.pop()
from hpcmoe.engine.batch import Sequences
from hpcmoe.launcher import rank_by_launcher
whole = Sequences.advance
def told(*given):
    Sequences.advance = whole
    with open(f"{folder}/{rank_by_launcher()}.pid", "w") as file:
        file.write(str(os.getpid()))
    return whole(*given)
Sequences.advance = told
from hpcmoe.__main__ import main
main()
"""
"""The command line, with a note of each rank's process behind its first step."""


@contextmanager
def running(tmp_path: Path) -> Iterator[tuple[subprocess.Popen, list[int]]]:
    """A job of many steps on four ranks, and the processes of its ranks."""
    (tmp_path / "spec.toml").write_text(tables.dump(TINY))
    prompts.write(tmp_path / "p.h5", [str(n) for n in range(4000)], [np.array([n % 90], np.int32) for n in range(4000)])
    job = tmp_path / "job.toml"
    job.write_text('model = "spec.toml"\nprompts = "p.h5"\noutput = "out.h5"\n[exchange]\ntimeout = 3.0\n'
                   '[generate]\nmax_new_tokens = 60\nignore_eos = true\n[schedule]\nmax_sequences = 2\n')
    process = subprocess.Popen(command(4, "-c", PIDS, "run", str(job), str(tmp_path)), stderr=subprocess.PIPE,
                               stdout=subprocess.DEVNULL, text=True)
    ranks = []
    try:
        ranks = wait_for_pids(tmp_path, 4)
        time.sleep(0.5)
        yield process, ranks
    finally:
        for pid in ranks:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.kill()
        process.wait()


def wait_for_pids(folder: Path, count: int) -> list[int]:
    """The processes of the ranks, once all have taken a step."""
    files = [folder / f"{rank}.pid" for rank in range(count)]
    wait_for(lambda: all(file.exists() and file.read_text() for file in files))
    return [int(file.read_text()) for file in files]


VICTIMS = (0, 2)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory) -> dict[int, tuple[int, float, str]]:
    """Of jobs one of whose ranks was stopped: the exit code, seconds until then, and what was said."""
    folders = {victim: tmp_path_factory.mktemp("stopped") for victim in VICTIMS}

    def stop(victim: int) -> tuple[int, float, str]:
        with running(folders[victim]) as (process, ranks):
            os.kill(ranks[victim], signal.SIGSTOP)
            begin = time.monotonic()
            _, said = process.communicate(timeout=60)
            return process.returncode, time.monotonic() - begin, said
    return at_once(stop, VICTIMS)


@pytest.mark.parametrize("victim", VICTIMS)
def test_a_stopped_rank_is_named(stopped, victim):
    code, seconds, said = stopped[victim]
    assert code != 0 and seconds < 25
    lines = [line for line in said.splitlines() if line.startswith("hpcmoe: error:")]
    assert len(lines) == 1 and f"rank {victim} on " in lines[0] and "does not answer" in lines[0], said
    assert ("layer" in lines[0] and " rows by " in lines[0]) or "vote" in lines[0]


def test_a_killed_rank_ends_the_job(tmp_path):
    with running(tmp_path) as (process, ranks):
        os.kill(ranks[1], signal.SIGKILL)
        begin = time.monotonic()
        process.communicate(timeout=60)
        assert process.returncode != 0 and time.monotonic() - begin < 15
        assert sys.platform == "linux" and not any(map(alive, ranks))


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


MODES = ("serial", "overlapped")


@pytest.fixture(scope="module")
def hung(tmp_path_factory) -> dict[str, tuple[subprocess.CompletedProcess, float]]:
    """How jobs ended, by their schedule, and after how many seconds."""
    folder = tmp_path_factory.mktemp("hung")
    (folder / "spec.toml").write_text(tables.dump(TINY))
    prompts.write(folder / "p.h5", list("abcdef"), [np.array([n, 5], np.int32) for n in range(6)])

    def hang(mode: str) -> tuple[subprocess.CompletedProcess, float]:
        job = folder / f"{mode}.toml"
        job.write_text(f'model = "spec.toml"\nprompts = "p.h5"\noutput = "{mode}.h5"\n[exchange]\ntimeout = 2.0\n'
                       f'[schedule]\nmode = "{mode}"\n')
        begin = time.monotonic()
        return mpiexec(3, "-c", HUNG, "run", str(job), seconds=60), time.monotonic() - begin
    return at_once(hang, MODES)


@pytest.mark.parametrize("mode", MODES)
def test_a_rank_that_hangs_in_its_arithmetic_ends_the_job(hung, mode):
    ended, seconds = hung[mode]
    assert ended.returncode != 0 and seconds < 25
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
