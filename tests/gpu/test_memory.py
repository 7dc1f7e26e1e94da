"""The plan of a GPU's memory against what is taken, and whole jobs that a GPU does not hold."""

import json
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from launched import mpiexec
from models import TINY

from hpcmoe import tables
from hpcmoe.config import Generate, Job, Schedule
from hpcmoe.engine.memory import plan_memory, plan_sizes
from hpcmoe.engine.seats import place
from hpcmoe.files import prompts

pytestmark = pytest.mark.gpu
HERE = Path(__file__).parent
LONG = replace(TINY, context=4 * 10**6)
NEW = 2 * 10**6
"""New tokens at most, so that the cache is what matters."""
LENGTHS = [3, 8, 1, 5, 2, 7, 4, 6, 3, 9, 2, 4]


@pytest.mark.parametrize(("ranks", "shards"), [(1, 1), (2, 1), (2, 2)])
@pytest.mark.parametrize(("model", "mode", "answers"), [
    ("some", "alltoallv", "generate"), ("some", "alltoallv", "score"), ("some", "persistent", "generate"),
    ("one", "alltoallv", "generate"), ("dense", "alltoallv", "score"), ("latent", "alltoallv", "generate"),
    ("latent", "alltoallv", "score"), ("sinks", "alltoallv", "generate")])
def test_no_more_is_taken_than_planned(model, mode, answers, ranks, shards, capsys):
    ended = mpiexec(ranks, str(HERE / "taken.py"), model, mode, answers, str(shards))
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout.splitlines()[-1])
    with capsys.disabled():
        print(f"\n{model} {mode} {answers} on {ranks}, {shards} shards: arrays {found['arrays'] / 1e6:.0f} MB, "
              f"GPU {found['gpu'] / 1e6:.0f} MB; {found['planned']}")
    assert found["weights"] * 0.7 + found["cache"] <= found["arrays"] <= found["total"] - found["overhead"]
    if ranks == 1:
        assert found["gpu"] <= found["total"]


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """Sequences that may be very long, and end with their first token."""
    (tmp_path / "spec.toml").write_text(tables.dump(LONG))
    prompts.write(tmp_path / "prompts.h5", [str(n) for n in range(len(LENGTHS))],
                  [np.arange(n, dtype=np.int32) for n in LENGTHS])
    path = tmp_path / "job.toml"
    path.write_text('model = "spec.toml"\nprompts = "prompts.h5"\noutput = "out.h5"\n[compute]\ndevice = "gpu"\n'
                    f"[generate]\nmax_new_tokens = {NEW}\nstop_tokens = {list(range(LONG.vocabulary))}\n")
    return path


def planned(sequences: int, ranks: int) -> int:
    """Bytes of the plan of `job`."""
    job = Job("m", "p", "o", generate=Generate(max_new_tokens=NEW), schedule=Schedule(max_sequences=sequences))
    sizes = plan_sizes(LONG, job, np.array(LENGTHS), ranks)
    return plan_memory(LONG, job, place(LONG, ranks), sizes, "device").total


def assert_one_line(ended, *words: str) -> None:
    """It failed with code 4, and said so in one line that has `words`."""
    lines = [line for line in ended.stderr.splitlines() if "hpcmoe: error:" in line]
    assert ended.returncode == 4, ended.stderr
    assert len(lines) == 1 and "Traceback" not in ended.stderr, ended.stderr
    for word in (*words, "weights ", " + keys and values ", " + exchange ", " + workspace "):
        assert word in lines[0], (word, lines[0])


@pytest.mark.parametrize("ranks", [1, 3])
def test_a_job_that_no_gpu_holds_is_refused(job, ranks):
    """Some 700 MB a sequence, 1000 of which are asked for."""
    ended = mpiexec(ranks, "-m", "hpcmoe", "run", str(job), "--set", "schedule.max_sequences=1000", "--set",
                    "schedule.max_tokens=1000")
    assert_one_line(ended, "are free", "the largest batch that fits is schedule.max_sequences = ")
    assert not (job.parent / "out.h5").exists()


FREE = """
import sys
import hpcmoe.gpu
free = int(sys.argv.pop())
hpcmoe.gpu.free_memory = lambda: free
from hpcmoe.__main__ import main
main()
"""
"""`hpcmoe` on GPUs that have so many bytes free, as they say."""


def test_sequences_that_are_left_to_be_planned_are_those_that_fit(job):
    ended = mpiexec(1, "-c", FREE, "run", str(job), str(planned(3, 1)))
    assert ended.returncode == 0 and "sequences at once on each rank: 3," in ended.stderr, ended.stderr
    with h5py.File(job.parent / "out.h5") as file:
        assert file["prompt"][:].tolist() == list(range(len(LENGTHS)))


FULL = """
import sys
from hpcmoe import gpu
gpu.take("gpu")  # before the next line loads MPI
limit = int(sys.argv.pop())
from hpcmoe.engine import device
from hpcmoe.launcher import rank_by_launcher
whole = device.open_segments
def then_full(*arguments, **more):
    found = whole(*arguments, **more)
    if rank_by_launcher() == 1:
        import cupy
        pool = cupy.get_default_memory_pool()
        pool.free_all_blocks()
        pool.set_limit(size=pool.total_bytes() + limit)
    return found
device.open_segments = then_full
from hpcmoe.__main__ import main
main()
"""
"""`hpcmoe` on whose rank 1 CuPy's pool gives so many bytes more, once the segments are open."""


def test_a_gpu_that_is_full_ends_the_job_with_the_plan(job):
    ended = mpiexec(3, "-c", FULL, "run", str(job), "--set", "generate.max_new_tokens=20", "512")
    assert_one_line(ended, "rank 1 on ", "memory is full (Out of memory allocating ", "planned were ")
    assert not (job.parent / "out.h5").exists()
