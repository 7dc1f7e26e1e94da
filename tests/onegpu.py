"""A GPU that ranks share, for tests and benchmarks."""

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Iterator

PATIENCE = 30
"""Seconds that the daemon has to end."""


def missing() -> str:
    """Why nothing can be computed on a GPU here; "" where it can."""
    try:
        from cupy.cuda import runtime
        runtime.getDeviceCount()
    except ImportError:
        return "no CuPy, for there is no GPU, or pip install -e '.[cuda13]' is missing"
    except runtime.CUDARuntimeError as error:
        return f"no GPU: {error}"
    return ""


@contextlib.contextmanager
def shared_gpu() -> Iterator[None]:
    """The MPS daemon: without it ranks that share a GPU take turns by time. It ends with the block."""
    with tempfile.TemporaryDirectory() as folder:
        names = "CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_LOG_DIRECTORY"
        os.environ |= dict.fromkeys(names, folder)
        try:
            subprocess.run(["nvidia-cuda-mps-control", "-d"], check=True)
            try:
                yield
            finally:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    subprocess.run(["nvidia-cuda-mps-control"], input="quit\n", text=True, check=False,
                                   timeout=PATIENCE)
        finally:
            for name in names:
                del os.environ[name]
