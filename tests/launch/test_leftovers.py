"""What a job leaves in MPI when it ends: nothing. And who calls MPI: the main thread alone."""

import json
from pathlib import Path

import numpy as np
import pytest
from launched import mpiexec
from models import TINY

from hpcmoe import tables
from hpcmoe.files import prompts

COUNTED = """
import json, sys, threading
from pathlib import Path
import mpi4py
mpi4py.rc.thread_level = "funneled"
from mpi4py import MPI

kept = {"communicators": [], "requests": [], "datatypes": [], "windows": []}
strangers = []

def counted(kind, makers):
    def call(name):
        plain = getattr(kind, name)
        def made(*arguments, **more):
            look(name)
            got = plain(*arguments, **more)
            kept[makers[name]].append(got)
            return got
        return made
    def ask(name):
        return property(lambda self: look(name) or getattr(kind, name).__get__(self))
    def look(name):
        if threading.current_thread() is not threading.main_thread():
            strangers.append(name)
    asked = {name: ask(name) for name in ("rank", "size") if name in dir(kind)}
    return type(kind.__name__, (kind,), {name: call(name) for name in makers} | asked)

makers = dict.fromkeys(("Dup", "Split", "Split_type", "Create", "Create_group"), "communicators")
makers |= dict.fromkeys([name for name in dir(MPI.Intracomm) if name.endswith("_init")], "requests")
makers |= dict.fromkeys(("Ialltoallv", "Ialltoall", "Iallgather", "Ibarrier", "Isend", "Irecv"), "requests")
MPI.COMM_WORLD = counted(MPI.Intracomm, makers)(MPI.COMM_WORLD)
makers = dict.fromkeys([name for name in dir(MPI.Datatype) if name.startswith("Create_")], "datatypes")
for name in ("UINT16_T", "INT64_T", "BYTE"):
    setattr(MPI, name, counted(MPI.Datatype, makers)(getattr(MPI, name)))
makers = dict.fromkeys(("Allocate", "Allocate_shared", "Create", "Create_dynamic"), "windows")
MPI.Win = counted(MPI.Win, makers)

from hpcmoe import config, launch
from hpcmoe.engine import job
folder, world = Path(sys.argv[1]), launch.start()
others = {}
for settings in sys.argv[2:]:
    job.run(world, config.load(folder / "job.toml", settings.split()), overwrite=True)
    others[settings] = sorted(set(strangers))
    strangers.clear()
left = {name: [len(made), sum(one != type(one)() for one in made)] for name, made in kept.items()}
(folder / f"{world.rank}.json").write_text(json.dumps({"left": left, "strangers": others}))
"""
"""Jobs in one process; afterwards how much of each kind was made, how much of it is still there, and what of it another
thread than the main one did."""
RANKS = 4


JOBS = ("exchange.mode=alltoallv", "exchange.mode=persistent", "exchange.mode=auto", "exchange.transport=staged")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A job of some steps: more sequences than slots, prompts of many lengths."""
    path = tmp_path_factory.mktemp("leftovers")
    (path / "spec.toml").write_text(tables.dump(TINY))
    lists = [np.arange(1 + 5 * n % 23, dtype=np.int32) for n in range(21)]
    prompts.write(path / "p.h5", [str(n) for n in range(21)], lists)
    (path / "job.toml").write_text(
        'model = "spec.toml"\nprompts = "p.h5"\noutput = "out.h5"\n[generate]\nmax_new_tokens = 9\n'
        '[schedule]\nmode = "overlapped"\nmax_sequences = 3\n[exchange]\nmode = "persistent"\n')
    return path


@pytest.fixture(scope="module")
def counted(folder) -> list[dict]:
    """What each rank counts that runs all of `JOBS` in one process."""
    ended = mpiexec(RANKS, "-c", COUNTED, str(folder), *JOBS)
    assert ended.returncode == 0, ended.stderr
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(RANKS)]


def test_a_job_ends_in_silence(folder):
    """Some MPIs tell at the end of what was not freed; not all, so the next test counts."""
    ended = mpiexec(RANKS, "-m", "hpcmoe", "run", str(folder / "job.toml"), "--overwrite")
    lines = [line for line in ended.stderr.splitlines() if not line.startswith("hpcmoe: ")]
    assert ended.returncode == 0 and not lines, ended.stderr


def test_all_that_jobs_make_in_mpi_is_freed(counted):
    """Communicators, requests, datatypes and windows, on every rank."""
    for rank, found in enumerate(counted):
        made, still = ({name: both[n] for name, both in found["left"].items()} for n in (0, 1))
        assert made["communicators"] >= 20 and made["requests"] >= 100, f"the counters see too little: {made}"
        assert not any(still.values()), f"rank {rank}: left {still} of {made}"


@pytest.mark.parametrize("job", JOBS)
def test_only_the_main_thread_calls_mpi(counted, job):
    """MPI is started as MPI_THREAD_FUNNELED; the arithmetic of `overlapped` runs on another thread."""
    strangers = {name for found in counted for name in found["strangers"][job]}
    assert not strangers, f"called from another thread: {strangers}"
