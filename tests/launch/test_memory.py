"""What becomes of a job that memory does not hold: exit code 4, one line with the plan, and no rank left behind."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from launched import mpiexec
from models import TINY

from hpcmoe import tables
from hpcmoe.files import prompts

RANKS = 3

GPUS = """
import sys
import hpcmoe.gpu
share, *free = map(int, sys.argv.pop().split(","))
def me():
    from mpi4py import MPI
    return MPI.COMM_WORLD.rank
from hpcmoe.launcher import rank_by_launcher
hpcmoe.gpu.take = lambda device: hpcmoe.gpu.Gpu(f"0000:{rank_by_launcher() // share:02x}:00.0")
hpcmoe.gpu.free_memory = lambda: free[me()]
from hpcmoe.__main__ import main
main()
"""
"""`hpcmoe` as if each GPU were there for so many ranks: "ranks,free,free,…"; it comes as far as to load weights."""

FULL = """
import sys
where = sys.argv.pop()
from hpcmoe.engine import device, open_cpu, segments
owner = {"load": device, "open_cache": open_cpu}.get(where, segments.CpuSegments)
whole = getattr(owner, where)
def full(first, second, *rest):
    from mpi4py import MPI
    if MPI.COMM_WORLD.rank == 1 and (where in ("load", "open_cache") or second.layer == 2):
        raise MemoryError("Out of memory allocating 512 bytes (allocated so far: 7 bytes).")
    return whole(first, second, *rest)
setattr(owner, where, full)
from hpcmoe.__main__ import main
main()
"""
"""`hpcmoe` whose memory is full on rank 1, where `where` says."""


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """A right job, to be spoilt."""
    (tmp_path / "spec.toml").write_text(tables.dump(TINY))
    prompts.write(tmp_path / "prompts.h5", ["a", "b", "c"], [np.arange(1, n, dtype=np.int32) for n in (4, 9, 2)])
    path = tmp_path / "job.toml"
    path.write_text('model = "spec.toml"\nprompts = "prompts.h5"\noutput = "out.h5"\n[generate]\nmax_new_tokens = 5\n')
    return path


def assert_one_line(ended, *words: str) -> None:
    """It failed with code 4, and said so in one line that has `words`."""
    lines = [line for line in ended.stderr.splitlines() if "hpcmoe: error:" in line]
    assert ended.returncode == 4, ended.stderr
    assert len(lines) == 1 and "Traceback" not in ended.stderr and not ended.stdout.strip(), ended.stderr
    for word in (*words, "weights ", " + keys and values ", " + exchange "):
        assert word in lines[0], (word, lines[0])


@pytest.mark.parametrize(("free", "words"), [
    ("1,900000000000,1000,900000000000", ["rank 1 on ", "1.0 kB are free;", "the weights alone are"]),
    ("3,900000000000,900000000000,900000000000", ["free for each of the 3 ranks", "schedule.max_sequences = "])])
def test_what_the_gpus_do_not_hold_is_refused_before_anything_is_loaded(job, free, words):
    (job.parent / "spec.toml").write_text(tables.dump(replace(TINY, context=10**8)))
    settings = "schedule.max_sequences=100", "generate.max_new_tokens=50000000"
    ended = mpiexec(RANKS, "-c", GPUS, "run", str(job), *(word for s in settings for word in ("--set", s)), free)
    assert_one_line(ended, " + workspace ", *words)
    assert not (job.parent / "out.h5").exists()


@pytest.mark.parametrize(("where", "mode"), [
    ("load", "serial"), ("open_cache", "serial"), ("dispatch", "serial"), ("_expert", "serial"),
    ("_gate", "overlapped"), ("_expert", "overlapped")])
def test_memory_that_is_full_on_one_rank_ends_all_with_the_plan(job, where, mode):
    """On the main thread and on the worker's; while weights are loaded, and behind it."""
    ended = mpiexec(RANKS, "-c", FULL, "run", str(job), "--set", f"schedule.mode={mode}", where)
    assert_one_line(ended, "rank 1 on ", "memory is full (Out of memory allocating 512 bytes (allocated so far: 7 ",
                    "planned were ", "schedule.max_sequences")
    assert not (job.parent / "out.h5").exists()
