"""`make test-gpu`: the tests of this folder, alone and on ranks that share a GPU under the MPS daemon."""

import os
import shutil
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
    files = [str(HERE / f"test_{name}.py") for name in ("kernels", "attention", "weights", "memory", "jobs")]
    command = [sys.executable, str(HERE / "rank.py"), "-m", "pytest", *files, *words]
    if ranks:
        mpiexec = Path(sys.executable).with_name("mpiexec")
        command = [str(mpiexec), "-n", str(ranks), sys.executable, str(HERE / "rank.py"), "-m", "pytest", "-x",
                   "--with-mpi", str(HERE / "test_model.py"), *words]
    print(f"\n== on the GPU, {f'{ranks} ranks' if ranks else 'kernels, memory, jobs'}", flush=True)
    return subprocess.run(command, timeout=LIMIT, check=False,
                          env={**os.environ, "OPENBLAS_NUM_THREADS": "1"}).returncode == 0


def run_checked() -> bool:
    """Whether the kernels' tests pass under compute-sanitizer, which looks at each access to memory; without the MPS
    daemon, with which it does not go. What it would say of calls that libraries make and expect to fail is left out."""
    program = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    print("\n== on the GPU, kernels under compute-sanitizer", flush=True)
    if not Path(program).exists():
        print("skipped: compute-sanitizer is not installed")
        return True
    files = [str(HERE / f"test_{name}.py") for name in ("kernels", "attention")]
    command = [program, "--tool", "memcheck", "--report-api-errors", "no", "--error-exitcode", "9", sys.executable,
               str(HERE / "rank.py"), "-m", "pytest", "-q", *files, *sys.argv[1:]]
    return subprocess.run(command, timeout=LIMIT, check=False).returncode == 0


def main() -> int:
    """0 where all pass, or nothing can be tested."""
    why = missing()
    if why:
        print(f"test-gpu: skipped: {why}")
        return 0
    with shared_gpu():
        passed = {ranks: run(ranks, "-q", *sys.argv[1:]) for ranks in (0, *RANKS)}
    passed[-1] = run_checked()
    titles = {-1: "checked", 0: "kernels"}
    for ranks, right in passed.items():
        print(f"{titles.get(ranks, f'{ranks:2} ranks'):8}  {'passed' if right else 'FAILED'}")
    return 0 if all(passed.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
