"""`make test-gpu`: the tests of this folder, alone and on ranks that share a GPU under the MPS daemon."""

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent))
from onegpu import missing, shared_gpu  # noqa: E402

RANKS = (1, 2, 4, 16)
LIMIT = 600
"""Seconds that one run may take."""


def run(ranks: int, *words: str) -> bool:
    """Whether the tests pass."""
    command = [sys.executable, str(HERE / "rank.py"), "-m", "pytest",
               *(str(HERE / f"test_{name}.py") for name in ("kernels", "weights", "memory", "jobs")), *words]
    if ranks:
        mpiexec = Path(sys.executable).with_name("mpiexec")
        command = [str(mpiexec), "-n", str(ranks), sys.executable, str(HERE / "rank.py"), "-m", "pytest", "-x",
                   "--with-mpi", str(HERE / "test_model.py"), *words]
    print(f"\n== on the GPU, {f'{ranks} ranks' if ranks else 'kernels, memory, jobs'}", flush=True)
    return subprocess.run(command, timeout=LIMIT, check=False,
                          env={**os.environ, "OPENBLAS_NUM_THREADS": "1"}).returncode == 0


def main() -> int:
    """0 where all pass, or nothing can be tested."""
    why = missing()
    if why:
        print(f"test-gpu: skipped: {why}")
        return 0
    with shared_gpu():
        passed = {ranks: run(ranks, "-q", *sys.argv[1:]) for ranks in (0, *RANKS)}
    for ranks, right in passed.items():
        print(f"{f'{ranks:2} ranks' if ranks else 'kernels '}  {'passed' if right else 'FAILED'}")
    return 0 if all(passed.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
