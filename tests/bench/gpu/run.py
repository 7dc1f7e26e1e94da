"""`make bench-gpu`: kernels, steps and exchanges on a GPU, each against its floor.

Each row is measured by a script of its own, in a process of its own with a limit of time, so that one that fails costs
no other. Their figures replace the row's earlier ones in docs/bench-gpu.toml; the README's table is made of that.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import table
from figures import FILE, Figure, Results, read, write

HERE = Path(__file__).parent
sys.path.append(str(HERE.parents[1]))
from onegpu import missing, shared_gpu  # noqa: E402

GRACE = 3
"""Seconds that a script has to end when it is asked to."""


@dataclass(frozen=True)
class Row:
    """How a script is run."""

    limit: float
    """seconds that it may take"""
    ranks: bool = False
    """whether it starts ranks that share the GPU"""
    peer: bool = False
    """whether it has a peer in PyTorch"""


ROWS = {"routing": Row(90, peer=True), "experts": Row(90, peer=True), "latent": Row(120),
        "exchange": Row(90, ranks=True), "overlap": Row(180, ranks=True), "model": Row(240)}


def measure(name: str, torch: str) -> tuple[list[Figure], str]:
    """What a row's script measured; and in words why that may not be all, or ""."""
    row = ROWS[name]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "figures.toml"
        command = [sys.executable, str(HERE / f"{name}.py"), str(out), *([torch] if torch and row.peer else [])]
        try:
            with shared_gpu() if row.ranks else nullcontext():
                code = _run(command, row.limit)
        except (OSError, subprocess.CalledProcessError) as error:
            return [], f"it cannot be started ({error})"
        why = f"no end within {row.limit:g} s" if code is None else f"ended with code {code}" if code else ""
        return list(read(out).figures), why


def _run(command: list[str], limit: float) -> int | None:
    """The exit code, None where the limit ended it."""
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    try:
        return process.wait(limit)
    except subprocess.TimeoutExpired:
        return None
    finally:
        if process.returncode is None:  # nobody has waited for it yet, so the number of its group is still its own
            os.killpg(process.pid, signal.SIGTERM)  # a launcher ends its ranks, which have groups of their own
            time.sleep(GRACE)
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def machine() -> dict[str, str]:
    """Device and versions. Makes no context: that would be one more process on the GPU."""
    from importlib import metadata

    import cupy
    from nvmath.bindings import cublasLt

    def package(*names: str) -> str:
        found = {d.name.lower(): d.version for d in metadata.distributions()}
        return next((found[name] for name in names if name in found), "none")
    driver = subprocess.run(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"], text=True,
                            capture_output=True, check=True).stdout.split()[0]
    runtime, lt = cupy.cuda.runtime.runtimeGetVersion(), cublasLt.get_version()
    return {"device": cupy.cuda.runtime.getDeviceProperties(0)["name"].decode(), "driver": driver,
            "CUDA": f"{runtime // 1000}.{runtime % 1000 // 10}", "CuPy": cupy.__version__,
            "cuBLASLt": f"{lt // 10000}.{lt // 100 % 100}.{lt % 100}",
            "cuDNN": package("nvidia-cudnn-cu13", "nvidia-cudnn-cu12")}


def main() -> int:
    """0 where every row that was asked for was measured, whether its targets are met or not."""
    arguments = argparse.ArgumentParser(prog="bench-gpu", description=__doc__.splitlines()[0])
    arguments.add_argument("rows", nargs="*", metavar="ROW", help=f"of {', '.join(ROWS)}; all, where none is named")
    arguments.add_argument("--torch", default="", metavar="PYTHON", help="a Python with PyTorch, to be measured beside")
    given = arguments.parse_args()
    if unknown := [name for name in given.rows if name not in ROWS]:
        arguments.error(f"there is no row {unknown[0]}: {', '.join(ROWS)}")
    if given.torch and not shutil.which(given.torch):
        arguments.error(f"--torch {given.torch}: there is no such program")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends the row that is on, and the MPS daemon, too
    why = missing()
    if why:
        print(f"bench-gpu: skipped: {why}")
        return 0
    here, results = machine(), read(FILE)
    if results.machine != here:  # figures of another machine do not belong beside these
        results = Results(here)
    names = [name for name in ROWS if name in given.rows or not given.rows]
    wrong = {}
    for name in names:
        print(f"\n== {name}", flush=True)
        begin = time.monotonic()
        figures, why = measure(name, given.torch)
        results = results.replaced(list(ROWS), name, figures, why)
        write(FILE, results)
        print(*map(table.line, figures), f"{name}: {why or 'measured'}, {time.monotonic() - begin:.0f} s", sep="\n",
              flush=True)
        wrong |= {name: why} if why else {}
    table.rewrite()
    missed = [f for f in results.figures if f.row in names and not f.met]
    print(f"\nbench-gpu: {len(missed)} of {sum(f.row in names for f in results.figures)} missed their targets"
          + "".join(f"; {name} was not measured, {why}" for name, why in wrong.items()))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
