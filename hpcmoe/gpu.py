"""A rank's GPU: taken before MPI starts, for MPI and UCX look for it when they do."""

import os
from dataclasses import dataclass

from hpcmoe import ulfm

LOCAL_VARIABLES = ("MPI_LOCALRANKID", "OMPI_COMM_WORLD_LOCAL_RANK", "PMI_LOCAL_RANK", "SLURM_LOCALID")
"""Where launchers leave a process's rank among those of its node."""

MESSAGES_BY_UCX = {"MPIR_CVAR_NOLOCAL": "1", "MPIR_CVAR_CH4_NETMOD": "ucx", "OMPI_MCA_pml": "ucx"}
"""How the MPICH and Open MPI of wheels give all messages to UCX, which knows GPUs."""


@dataclass(frozen=True)
class Gpu:
    """What a rank found."""

    address: str = ""
    """on the PCI bus; "" where the rank computes on its CPU"""
    failure: str = ""
    """why the job cannot have the GPU that it asks for"""


def take(device: str) -> Gpu:
    """This rank's GPU, by its number among the ranks of its node, ready for kernels and for MPI.

    `device` is the job's `compute.device`: with "auto" it is no failure that there is none. Several ranks share a GPU
    where there are too few.
    """
    if device == "cpu":
        return Gpu()
    try:
        from cupy.cuda import runtime
    except ImportError:
        return Gpu() if device == "auto" else Gpu(failure="compute.device = gpu needs CuPy: pip install "
                                                          "'hpcmoe[cuda13]' (or cuda12, for older drivers)")
    local = next((int(os.environ[name]) for name in LOCAL_VARIABLES if os.environ.get(name, "").isdigit()), 0)
    try:
        runtime.setDevice(local % runtime.getDeviceCount())
        runtime.free(0)  # makes the context that MPI and UCX look for
        address = runtime.deviceGetPCIBusId(runtime.getDevice())
    except runtime.CUDARuntimeError as error:
        return Gpu() if device == "auto" else Gpu(failure=f"compute.device = gpu, but no GPU can be used ({error})")
    if not ulfm.on():  # UCX knows of no dead ranks
        _load_ucx()
    return Gpu(address)


def number() -> int:
    """Of this rank's GPU among those that the process sees."""
    from cupy.cuda import runtime
    return int(runtime.getDevice())


def free_memory() -> int:
    """Bytes that this rank's GPU has free, for all who sit on it."""
    from cupy.cuda import runtime
    return int(runtime.memGetInfo()[0])


def _load_ucx() -> None:
    """UCX of a wheel, where it is installed, goes before MPI's own.

    A site's MPI knows GPUs itself, or rows are staged.
    """
    try:
        import libucx
    except ImportError:
        return
    for name, value in MESSAGES_BY_UCX.items():
        os.environ.setdefault(name, value)
    libucx.load_library()
