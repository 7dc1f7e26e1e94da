"""Jobs started from outside, as a user starts them."""

import os
import subprocess
import sys
from pathlib import Path


def command(ranks: int, *arguments: str) -> list[str]:
    """`python arguments` on `ranks` ranks of the MPI beside this Python (or of $MPIEXEC)."""
    beside = Path(sys.executable).with_name("mpiexec")
    return [os.environ.get("MPIEXEC", str(beside)), "-n", str(ranks), sys.executable, *arguments]


def mpiexec(ranks: int, *arguments: str, seconds: float = 300) -> subprocess.CompletedProcess:
    """Runs it to its end."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_NUM", "OPENBLAS_NUM", "COLUMNS"))}
    return subprocess.run(command(ranks, *arguments), capture_output=True, text=True, timeout=seconds, env=environment)
