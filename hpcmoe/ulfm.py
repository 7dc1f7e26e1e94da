"""Ranks that die, where MPI lets the others go on: user-level failure mitigation (ULFM; the chapter "Process Fault
Tolerance" of the MPI Forum's proposal), which Open MPI has under `mpirun --with-ft ulfm`.

Whoever hears of a death, or is about to end the job, revokes the communicator of all ranks, on which all look while
they wait: MPI raises there. Then all that live agree on what it was. `Abort` would end one rank only, and leave the
others waiting.
"""

import os
import signal
import time
from array import array
from typing import Any, NoReturn

from hpcmoe.errors import DeviceError, JobError

HOW = "Open MPI's mpirun --with-ft ulfm"
ON, LAYER = "OMPI_MCA_mpi_ft_enable", "OMPI_MCA_pml"
"""Variables of Open MPI: what that option sets, and what carries messages."""
WELL = 0x7fffffff
HEARD = WELL ^ 1
"""What a rank says of itself: that all is well, or that it heard of a death. One that ends the job says with which exit
code, times four. The verdict is what all say, bit by bit."""
NAP = 1e-3
"""Seconds between two looks."""
PATIENCE = 5.0
"""Seconds that a rank which ends the job waits for the others to hear it."""


def on() -> bool:
    """Whether the launcher started this process with it."""
    return os.environ.get(ON, "") in ("1", "true")


def check(library: str, memory: str, transport: str) -> None:
    """Raises `JobError` where a job could not go on without a rank.

    `library` and `memory` as in `launch.World`, `transport` the job's.
    """
    if not on():
        raise JobError(f"checkpoint.on_failure = shrink needs {HOW}, not srun and no other MPI ({library}): start the "
                       "job so, or set requeue")
    if os.environ.get(LAYER, "ob1") != "ob1":
        raise JobError(f"checkpoint.on_failure = shrink: {LAYER} = {os.environ[LAYER]} knows of no dead ranks: unset "
                       "it, or set it to ob1")
    if memory == "device" and transport != "staged":
        raise JobError("checkpoint.on_failure = shrink: what carries rows between GPUs knows of no dead ranks: set "
                       "exchange.transport = staged")


def tells_of_death(error: BaseException) -> bool:
    """Whether MPI raised it because a rank died or ends the job, here or where another one heard of it."""
    if not on():
        return False
    from mpi4py import MPI
    return isinstance(error, MPI.Exception) and error.Get_error_class() in (
        MPI.ERR_PROC_FAILED, MPI.ERR_PROC_FAILED_PENDING, MPI.ERR_REVOKED)


def agree(comm: Any, word: int, seconds: float) -> int:
    """The verdict of all ranks of `comm` that live. Where one died meanwhile, `HEARD`. Collective over them.

    Raises `DeviceError` after so many seconds.
    """
    verdict, end = array("i", [word]), time.monotonic() + seconds
    try:
        request = comm.Iagree(verdict)
        while not request.Test():
            if time.monotonic() > end:
                raise DeviceError(f"a rank died, and not all others say within {seconds:.0f} s that they heard of it")
            time.sleep(NAP)
    except Exception as error:
        if not tells_of_death(error):
            raise
        return HEARD
    return verdict[0]


def ending(verdict: int) -> int:
    """The exit code with which a rank ends the job; 0 where none does."""
    return 0 if verdict & 2 else verdict >> 2


def end(comm: Any, code: int) -> NoReturn:
    """Ends all ranks of `comm` with `code`: those that hear of it end themselves, a rank that is stopped goes with the
    launcher."""
    comm.Revoke()
    try:
        agree(comm, code << 2, PATIENCE)
        time.sleep(PATIENCE / 50)  # or the launcher's own code would be that of whoever is first
    except DeviceError:
        os.kill(os.getppid(), signal.SIGTERM)
    os._exit(code)
