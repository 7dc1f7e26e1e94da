"""`probe`: what of the job's launch, and which transports and modes, work on these ranks.

A wrong MPI library does not fail, it ends the process. So the file is written before each thing that could do that, as
if it had, and again after it: what is on disk then tells the next run.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from mpi4py import MPI

from hpcmoe import array
from hpcmoe.bench.exchange import expected, filler
from hpcmoe.exchange import tune
from hpcmoe.exchange.interface import Rows
from hpcmoe.exchange.lane import Way, open_rows
from hpcmoe.files.probe import ENDED, WORKS, WRONG, Verdicts
from hpcmoe.kernels.pack import gather
from hpcmoe.launch import World
from hpcmoe.launcher import tasks_by_launcher
from hpcmoe.types import MODES, TRANSPORTS

EXACT = "alltoallv"
"""The mode to which the others turn where they do not pay."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    what: str
    right: bool
    found: str
    mend: str = ""
    """what to do where it is not right"""


def launch_findings(world: World) -> list[Finding]:
    """Of ranks, cores, threads and memory. Collective; the same on all ranks."""
    tasks = tasks_by_launcher()
    level = MPI.Query_thread()
    names = {MPI.THREAD_SINGLE: "single", MPI.THREAD_FUNNELED: "funneled", MPI.THREAD_SERIALIZED: "serialized",
             MPI.THREAD_MULTIPLE: "multiple"}
    return [
        Finding("ranks", tasks in (1, world.size), f"{world.size}, and the launcher started {tasks}",
                "use the launcher of this MPI: its mpiexec, or srun with the right --mpi"),
        _cores(world),
        Finding("MPI threads", level >= MPI.THREAD_FUNNELED, names.get(level, str(level)),
                "the library must offer MPI_THREAD_FUNNELED: look for its build with threads, or unset what lowers it"),
        Finding("memory kinds", True, _memory_kinds()),
        _devices(world),
    ]


def _cores(world: World) -> Finding:
    """Whether each rank has a core, and none is shared by ranks that the launcher bound."""
    cores = world.comm.allgather(tuple(sorted(os.sched_getaffinity(0))))
    crowded = []
    for host in dict.fromkeys(world.hosts):
        there = [cores[rank] for rank in range(world.size) if world.hosts[rank] == host]
        held = sorted(core for some in there for core in some)
        if len(set(held)) < len(there):
            crowded.append(f"{len(there)} ranks share {len(set(held))} cores of {host}")
        elif len(set(there)) > 1 and len(set(held)) < len(held):
            crowded.append(f"ranks of {host} are bound to sets of cores that overlap")
    return Finding("cores", not crowded, "; ".join(crowded[:3]) or f"{len(cores[0])} for rank 0, {world.threads} BLAS "
                   "threads each", "give each rank cores of its own: --cpus-per-task with --cpu-bind=cores (srun), "
                   "-bind-to core (MPICH), --map-by slot:PE=N (Open MPI), or start fewer ranks")


def _memory_kinds() -> str:
    """What the library says of itself (MPI 4.1, 11.4.3)."""
    try:
        return MPI.COMM_WORLD.Get_info().get("mpi_memory_alloc_kinds") or "the library does not say"
    except (MPI.Exception, NotImplementedError):
        return "the library does not say"


def _devices(world: World) -> Finding:
    """Which GPUs the ranks compute on, and whether each has one of its own that the others of its node can see."""
    shown = world.comm.allgather(os.environ.get("CUDA_VISIBLE_DEVICES", ""))
    alone = "each rank sees only its own GPU, which breaks CUDA IPC: --gpus-per-node, not --gpus-per-task"
    if world.memory == "host":
        return Finding("GPUs", True, "none is used")
    taken = {(world.hosts[rank], gpu.address) for rank, gpu in enumerate(world.gpus)}
    if len(taken) < world.size:
        return Finding("GPUs", False, f"{world.size} ranks share {len(taken)}",
                       "ask for a GPU per rank (--gpus-per-node), or start the MPS daemon where that is meant to be")
    hidden = any("," not in gpus and gpus != shown[0] and world.hosts[rank] == world.hosts[0]
                 for rank, gpus in enumerate(shown) if gpus)
    return Finding("GPUs", not hidden, f"one for each rank; {world.gpus[0].address} for rank 0", alone)


def works(world: World, way: Way, units: int) -> bool:
    """Whether rows come whole: even, to one rank, none, and ragged, one after another. Collective, the same on all."""
    rows, right = open_rows(world.comm, world.idle, way), True
    for table in _tables(world.size):
        tune.repeat(rows, table, world.rank, units, filler(world.rank, table[world.rank], units))()
        right &= _whole(world, rows, table)
    rows.free()
    return all(world.comm.allgather(right))


def _tables(ranks: int) -> Iterator[np.ndarray]:
    yield tune.even(ranks, 3)
    yield np.zeros((ranks, ranks), np.int64)
    one = np.zeros((ranks, ranks), np.int64)
    one[:, 0] = 5
    yield one
    yield np.random.default_rng(7).integers(0, 9, (ranks, ranks))


def _whole(world: World, rows: Rows, table: np.ndarray) -> bool:
    found = gather(array.host(rows.arrived), rows.landing.place)
    return np.array_equal(found, np.concatenate(expected(world.rank, table, found.shape[1])))


def try_ways(world: World, units: int, ended: Sequence[tuple[str, str]], tell: Callable[[str], None],
             save: Callable[[Verdicts], None]) -> Verdicts:
    """Which transports work in which modes. Collective.

    Those in `ended` ended an earlier probe, and are left out. `tell` says what is tried next; `save` keeps what is
    known, as if what is tried next ended the process.
    """
    found: Verdicts = dict.fromkeys(ended, ENDED)
    for transport, mode in product(TRANSPORTS, MODES):
        way = transport, mode
        if way in ended:
            tell(f"leaving out {mode} by transport {transport}, which ended a probe: remove its file to try again")
        elif mode != EXACT and found[transport, EXACT] != WORKS:
            tell(f"leaving out {mode} by transport {transport}, which needs {EXACT}")
        else:
            save({**found, way: ENDED})
            tell(f"trying {mode} by transport {transport}")
            found[way] = WORKS if works(world, Way(mode, transport, memory=world.memory), units) else WRONG
    return found
