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
import inspect, json, sys, threading
from pathlib import Path
import mpi4py
mpi4py.rc.thread_level = "funneled"
from mpi4py import MPI

kinds = {"communicators": MPI.Comm, "requests": MPI.Request, "datatypes": MPI.Datatype}
kept = {name: [] for name in kinds}
calls, strangers = set(), set()

def look(name):
    (calls if threading.current_thread() is threading.main_thread() else strangers).add(name)

def watched(kind):
    def call(name, plain):
        def made(*given, **more):
            look(name)
            got = plain(*given, **more)
            got = requests.get(type(got), lambda same: same)(got)
            for what, base in kinds.items():
                if isinstance(got, base) and got is not given[0]:
                    kept[what].append(got)
            return got
        return made
    def ask(name):
        return property(lambda self: look(name) or getattr(kind, name).__get__(self))
    body = {name: ask(name) for name in ("rank", "size") if name in dir(kind)}
    for name in dir(kind):
        if callable(plain := getattr(kind, name)) and not name.startswith("_"):
            static = isinstance(inspect.getattr_static(kind, name), classmethod)
            body[name] = (staticmethod if static else lambda method: method)(call(name, plain))
    return type(kind.__name__, (kind,), body)

requests = {kind: watched(kind) for kind in (MPI.Request, MPI.Prequest)}
MPI.Request, MPI.Prequest = requests.values()
MPI.COMM_WORLD = watched(MPI.Intracomm)(MPI.COMM_WORLD)
datatype = watched(MPI.Datatype)
for name in ("UINT16_T", "INT64_T", "BYTE"):
    setattr(MPI, name, datatype(getattr(MPI, name)))

from hpcmoe import config, launch
from hpcmoe.engine import job
folder, world = Path(sys.argv[1]), launch.start()
others = {}
for settings in sys.argv[2:]:
    job.run(world, config.load(folder / "job.toml", settings.split()), overwrite=True)
    others[settings] = sorted(strangers)
    strangers.clear()
left = {name: [len(made), sum(one != type(one)() for one in made)] for name, made in kept.items()}
(folder / f"{world.rank}.json").write_text(json.dumps({"left": left, "strangers": others, "calls": sorted(calls)}))
"""
"""Jobs in one process; afterwards how much of each kind was made, how much of it is still there, which calls of
communicators, requests and datatypes the main thread made, and which another one did."""
CALLS = {"Dup", "Free", "Create_contiguous", "Alltoallv_init", "Start", "Test", "Ialltoallv", "Iallgather", "Iprobe",
         "Allreduce", "Ibarrier", "allgather", "bcast", "rank", "size"}
"""Some that every rank makes."""
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
    """Communicators, requests and datatypes, on every rank."""
    for rank, found in enumerate(counted):
        made, still = ({name: both[n] for name, both in found["left"].items()} for n in (0, 1))
        enough = made["communicators"] >= 20 and made["requests"] >= 100 and made["datatypes"] >= 1
        assert enough, f"the counters see too little: {made}"
        assert not any(still.values()), f"rank {rank}: left {still} of {made}"


@pytest.mark.parametrize("job", JOBS)
def test_only_the_main_thread_calls_mpi(counted, job):
    """MPI is started as MPI_THREAD_FUNNELED; the arithmetic of `overlapped` runs on another thread."""
    assert all(set(found["calls"]) >= CALLS for found in counted), f"the watch sees too little: {counted[0]['calls']}"
    strangers = {name for found in counted for name in found["strangers"][job]}
    assert not strangers, f"called from another thread: {strangers}"
