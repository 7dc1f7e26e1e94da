"""What computes: this program and what it stands on."""

import platform
from collections.abc import Iterable

import h5py
import numpy as np
from threadpoolctl import threadpool_info

from hpcmoe import __version__


def versions(library: str = "") -> str:
    """One line; `library` is MPI's own version, which comes last. BLAS is named with the kernels that it takes for this
    processor: they decide last bits."""
    blas = [f"{found['internal_api']} {found['version']} {found.get('architecture', '')}".strip()
            for found in threadpool_info() if found["user_api"] == "blas"]
    names = [f"hpcmoe {__version__}", f"Python {platform.python_version()}", f"numpy {np.__version__}",
             f"h5py {h5py.version.version}", f"HDF5 {h5py.version.hdf5_version}", *blas[:1]]
    return ", ".join(names + ([library] if library else []))


def compare(others: Iterable[str]) -> list[str]:
    """What to say where a reproducible job goes on from answers that something else computed; MPI does not matter."""
    differ = sorted(other for other in others if not other.startswith(versions()))
    return [f"earlier answers were computed by {differ[0]}, these are by {versions()}: last bits may differ from those "
            "of a run in one piece"] if differ else []
