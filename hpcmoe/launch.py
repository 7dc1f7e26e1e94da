"""From a process to a rank: device, MPI, the share of the cores, and how a job ends when something goes wrong.

Nothing here runs before a verb needs it, so `--help` and `check` work where MPI does not.
"""

import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from hpcmoe import gpu, ulfm
from hpcmoe.errors import INTERNAL, DeviceError, HpcmoeError
from hpcmoe.gpu import Gpu
from hpcmoe.launcher import be_heard, check_launch, report, tasks_by_launcher

T = TypeVar("T")

Idle = Callable[[], None]
"""What a rank does between two looks at a request that is not complete."""

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""

SEGMENT = "/dev/shm/mpich_shm_"
"""How the names of MPICH's segments begin."""
MPI_DEFAULTS = {
    # Keeps MPICH from making others later, for blocking collectives that are called often: none is, in a step. A rank
    # that is killed just then would leave their names.
    "MPIR_CVAR_POSIX_NUM_COLLS_THRESHOLD": "1000000000",
    # Over TCP UCX hands 8 KiB to a call of the kernel; with larger ones that took 0.4 times as long of the cores.
    "UCX_TCP_TX_SEG_SIZE": "64k", "UCX_TCP_RX_SEG_SIZE": "256k"}
"""What MPI libraries are told in their environment, where that does not say otherwise."""

LEAVING = 60.0
"""Seconds until all ranks have heard that one ends the job, or died."""
_survivors: Any = None
"""The communicator of those that live, once a rank died."""

NAP = 0.001
"""Seconds between two looks whether all ranks have come."""


@dataclass(frozen=True)
class World:
    """All ranks of the job, seen from one."""

    comm: Any
    """mpi4py's COMM_WORLD"""
    rank: int
    size: int
    hosts: tuple[str, ...]
    """`[R]`: the host of each rank"""
    pids: tuple[int, ...]
    """`[R]`: the process of each rank"""
    nodes: tuple[int, ...]
    """`[R]`: the node of each rank, numbered from 0 in the order of their first ranks; ranks of one share memory"""
    threads: int
    """BLAS threads of this rank"""
    idle: Idle
    """what to do between two looks at a request"""
    library: str
    """the MPI library's own version line"""
    gpus: tuple[Gpu, ...] = ()
    """`[R]`: what each rank found"""
    group: int = 0
    """which part of all ranks these are, where the job has independent groups of neighbours, which are of one size,"""
    groups: int = 1
    """and of how many"""

    @property
    def first(self) -> int:
        """What rank 0 is called among all ranks."""
        return self.group * self.size

    @property
    def label(self) -> str:
        """How a line begins that is about these ranks only: "ranks 4 to 7: "; "" where they are all."""
        return f"ranks {self.first} to {self.first + self.size - 1}: " if self.groups > 1 else ""

    @property
    def memory(self) -> str:
        """Where ranks compute: one of `array.MEMORY`."""
        return "device" if self.gpus and all(gpu.address for gpu in self.gpus) else "host"


class Agreed(Exception):
    """A failure that all ranks know of. One of them reports it, all end with its code."""

    def __init__(self, code: int, line: str, mine: bool) -> None:
        """`mine` is whether this rank reports it."""
        super().__init__(line)
        self.code, self.line, self.mine = code, line, mine


def spin() -> None:
    """Look again at once: for ranks with a core of their own."""


def rest() -> None:
    """Give the core away first: for ranks that outnumber the cores."""
    time.sleep(0)


def start(device: str = "cpu") -> World:
    """Takes the GPU, starts MPI and shares out the cores. Collective over all processes of the job.

    `device` is the job's `compute.device`. Raises `DeviceError`.
    """
    mine = gpu.take(device)
    import mpi4py
    mpi4py.rc.thread_level = "funneled"
    os.environ.update({name: value for name, value in MPI_DEFAULTS.items() if name not in os.environ})
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:  # what mpi4py raises where it finds no library
        raise DeviceError(f"MPI cannot be loaded ({' '.join(str(error).split())}): pip install 'hpcmoe[mpich]', or set "
                          "MPI4PY_LIBMPI to the site's libmpi.so") from None
    comm = MPI.COMM_WORLD
    library = " ".join(MPI.Get_library_version().strip("\0").split("\n")[0].split())
    check_launch(comm.size, tasks_by_launcher(), library)
    meet(comm)  # some begin sooner
    node = comm.Split_type(MPI.COMM_TYPE_SHARED)
    threads, crowded = share_cores([tuple(sorted(cores)) for cores in node.allgather(os.sched_getaffinity(0))],
                                   node.rank)
    first = node.bcast(comm.rank)
    if node.rank == 0:
        forget_segments()
    node.Free()
    threads = limit_blas(threads)
    hosts, pids, firsts, gpus = zip(*comm.allgather((MPI.Get_processor_name(), os.getpid(), first, mine)))
    return World(comm, comm.rank, comm.size, hosts, pids, number(firsts), threads, rest if crowded else spin, library,
                 gpus)


def forget_segments() -> None:
    """Removes the names of MPICH's segments in shared memory, once all ranks of the node have mapped them: the memory
    then goes with the last rank, however that ends."""
    with suppress(OSError):
        for line in Path("/proc/self/maps").read_text().splitlines():
            if SEGMENT in line and not line.endswith("(deleted)"):
                Path(line[line.index(SEGMENT):]).unlink(missing_ok=True)


def with_nodes(world: World, ranks_per_node: int) -> World:
    """`world` with so many neighbouring ranks as a node each; 0 leaves it as it was found."""
    if not ranks_per_node:
        return world
    return replace(world, nodes=tuple(rank // ranks_per_node for rank in range(world.size)))


def number(names: Sequence[Any]) -> tuple[int, ...]:
    """The same names as numbers: 0 for the first, 1 for the next one that differs, and so on."""
    order = list(dict.fromkeys(names))
    return tuple(order.index(name) for name in names)


def share_cores(cores: list[tuple[int, ...]], me: int) -> tuple[int, bool]:
    """The BLAS threads of one rank, and whether the ranks of its node outnumber their cores.

    `cores`: for each rank of the node, those that it may run on. Ranks that the launcher bound have some of their own.
    """
    sharers = cores.count(cores[me])
    return max(1, len(cores[me]) // sharers), sharers > len(cores[me])


def limit_blas(threads: int) -> int:
    """Sets the BLAS threads of this process, unless its environment already says how many; returns how many it has."""
    import_module("numpy")  # a BLAS that is loaded later would have threads of its own choice
    from threadpoolctl import threadpool_info, threadpool_limits
    if not {"OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"} & set(os.environ):
        threadpool_limits(threads)
    return max((info["num_threads"] for info in threadpool_info() if info["user_api"] == "blas"), default=threads)


def check_gpus(world: World) -> None:
    """Raises `Agreed` where a rank cannot have the GPU that the job asks for, or has none while others have."""
    some = any(gpu.address for gpu in world.gpus)
    for rank, found in enumerate(world.gpus):
        if found.failure or (some and not found.address):
            line = found.failure or "it has no GPU, others have: give every rank one, or set compute.device = cpu"
            raise Agreed(DeviceError.code, f"rank {rank} on {world.hosts[rank]}: {line}", rank == world.rank)


def meet(comm: Any) -> None:
    """Returns when all ranks have come here; those that wait leave the cores to the others. Collective."""
    request = comm.Ibarrier()
    while not request.Test():
        time.sleep(NAP)


def on_root(world: World, work: Callable[[], T]) -> T:
    """What `work` gives on rank 0, on all ranks. Collective. Raises `Agreed` where it raised there."""
    outcome: tuple[T | None, HpcmoeError | None] = (None, None)
    if world.rank == 0:
        try:
            outcome = work(), None
        except HpcmoeError as error:
            outcome = None, error
    meet(world.comm)
    value, failure = world.comm.bcast(outcome)
    if failure is not None:
        raise Agreed(failure.code, str(failure), world.rank == 0)
    return value


def together(world: World, work: Callable[[], T]) -> T:
    """What `work` gives on each rank. Collective. Raises `Agreed` where it raised on any of them."""
    value, failure = None, None
    try:
        value = work()
    except HpcmoeError as error:
        failure = error.code, str(error)
    meet(world.comm)
    failures = world.comm.allgather(failure)
    failed = [rank for rank, f in enumerate(failures) if f]
    if failed:
        code, line = failures[failed[0]]
        alone = "" if len(failed) == world.size else f"rank {failed[0]} on {world.hosts[failed[0]]}: "
        raise Agreed(code, alone + line, failed[0] == world.rank)
    return value  # type: ignore[return-value]


def guarded(world: World, work: Callable[[], int | None]) -> int:
    """Runs `work`; returns the exit code that all ranks agree on, work's own if it returns one, or ends the whole job
    from this rank."""
    try:
        code = work() or 0
    except Agreed as agreed:
        if agreed.mine:
            report(agreed.line)
        code = agreed.code
    except HpcmoeError as error:
        report(f"rank {world.rank} on {world.hosts[world.rank]}: {error}" if world.size > 1 else str(error))
        end_all(world, error.code)
    except MemoryError as error:
        report(f"rank {world.rank} on {world.hosts[world.rank]}: memory is full ({error}): fewer or shorter sequences "
               "need less (schedule.max_sequences, schedule.max_tokens); hpcmoe check prints the plan")
        end_all(world, DeviceError.code)
    except KeyboardInterrupt:
        report("interrupted")
        end_all(world, INTERRUPTED)
    except BaseException as error:  # whatever it is, the other ranks must not wait for this one
        if ulfm.tells_of_death(error):
            leave(world)
        print(f"hpcmoe: internal error on rank {world.rank} of {world.size}, host {world.hosts[world.rank]}:\n"
              + traceback.format_exc(), file=sys.stderr, end="", flush=True)
        end_all(world, INTERNAL)
    if _survivors:
        part(code)
    return code


def part(code: int) -> NoReturn:
    """Ends a rank that outlived others, once all have come here; without `Finalize`, in which Open MPI now and then
    waits for ever at a fence of its runtime."""
    sys.stdout.flush()
    be_heard([1, 2])
    with suppress(Exception):  # others may be gone already
        meet(_survivors)
    os._exit(code)


def end_all(world: World, code: int) -> NoReturn:
    """Ends every rank of the job with `code`: after a plain exit the others would wait for ever."""
    sys.stdout.flush()
    be_heard([1, 2])
    if ulfm.on():
        ulfm.end(_survivors or world.comm, code)
    world.comm.Abort(code)
    os._exit(code)


def leave(world: World) -> NoReturn:
    """Ends this rank behind one that ends the job, with its code; or all of them, where one died outside of steps."""
    comm = _survivors or world.comm
    comm.Revoke()
    if code := ulfm.ending(ulfm.agree(comm, ulfm.HEARD, LEAVING)):
        os._exit(code)
    if comm.Shrink().rank == 0:
        report("a rank died, and not in a step: what was committed is there, the same command goes on")
    os._exit(DeviceError.code)


def shrink(world: World) -> tuple[World, list[int]]:
    """The world of the ranks that live, and what they are in `world`, ascending. Collective over them."""
    global _survivors
    comm = _survivors = world.comm.Shrink()
    living = comm.allgather(world.rank)

    def of(all_of_them: tuple) -> tuple:
        return tuple(all_of_them[rank] for rank in living)
    return replace(world, comm=comm, rank=comm.rank, size=comm.size, hosts=of(world.hosts), pids=of(world.pids),
                   nodes=number(of(world.nodes)), gpus=of(world.gpus) if world.gpus else ()), living
