"""Who started this process: its place among the others, its last words, and its end when that is gone."""

import fcntl
import os
import stat
import sys
import termios
import threading
import time
from collections.abc import Sequence

from hpcmoe.errors import DeviceError, visible

HEARD = 2.0
"""Seconds that a rank waits, before it ends the job, until its last words have left it."""

ORPHANED = 0.5
"""Seconds between two looks whether the launcher's process is still there."""

RANK_VARIABLES = ("PMI_RANK", "PMIX_RANK", "OMPI_COMM_WORLD_RANK", "SLURM_PROCID")
"""Where launchers leave a process's rank."""


def rank_by_launcher() -> int:
    """This process's rank as its launcher says, before MPI is started; 0 without a launcher."""
    return next((int(os.environ[name]) for name in RANK_VARIABLES if os.environ.get(name, "").isdigit()), 0)


def tasks_by_launcher() -> int:
    """How many processes the launcher started, as it says itself; 1 without a launcher.

    mpiexec and mpirun are asked first: inside a Slurm job their processes inherit Slurm's variables.
    """
    names = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS")
    return next((int(os.environ[name]) for name in names if os.environ.get(name, "").isdigit()), 1)


def check_launch(size: int, tasks: int, library: str) -> None:
    """Raises `DeviceError` where MPI sees one rank of many: each would do the whole job, silently."""
    if size == 1 and tasks > 1:
        raise DeviceError(f"{tasks} tasks were started but MPI sees 1: use srun --mpi=pmi2 (MPICH) or --mpi=pmix (Open "
                          f"MPI), or the mpiexec of this MPI ({library})")


def end_with_launcher() -> None:
    """Ends this process soon after the launcher's that started it, where one did.

    A launcher that is killed, or its daemon on this node, cannot end its ranks; they would go on, or wait for ever.
    """
    if not any(os.environ.get(name, "").isdigit() for name in RANK_VARIABLES):
        return
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(ORPHANED)
        try:
            report(f"rank {rank_by_launcher()}: the launcher's process {parent} is gone")
        finally:  # nobody may be there to read it
            os._exit(DeviceError.code)
    threading.Thread(target=watch, name="hpcmoe-launcher", daemon=True).start()


def report(line: str) -> None:
    """The one line that an expected failure prints."""
    print(f"hpcmoe: error: {visible(line)}", file=sys.stderr, flush=True)


def be_heard(files: Sequence[int]) -> None:
    """Waits until the launcher has read what this rank wrote: what it has not when a rank aborts, it forgets."""
    end = time.monotonic() + HEARD
    pipes = [fd for fd in files if stat.S_ISFIFO(os.fstat(fd).st_mode)]
    while time.monotonic() < end and any(unread(fd) for fd in pipes):
        time.sleep(0.001)


def unread(pipe: int) -> int:
    """Bytes in a pipe that its reader has not taken."""
    return int.from_bytes(fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)), sys.byteorder)
