"""Runs the tests in one process, under each MPI at each number of ranks, and as whole jobs; then says how each went.

    python tests/matrix.py --unit --mpi mpich:1,2,4,16 --mpi openmpi:4 --launch -k route

What it does not know goes to pytest. The last line is `N passed, N failed, N skipped`; the exit code is 1 if anything
failed or nothing ran. With CI=true a skip whose reason begins with "not installed" is a failure.
Every process keeps a record (tests/conftest.py writes it), from which the runner tells what happened even to ranks
that were killed; it lies with JUnit files and the output of each rank in build/test/.
"""

import argparse
import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import IO

from verdict import Outcome, Run, judge, read, report

RANK = "${PMI_RANK:-${PMIX_RANK:-${OMPI_COMM_WORLD_RANK:-${SLURM_PROCID:?the launcher gives no rank}}}}"
ON_A_RANK = f"""r={RANK}; [ "$r" = 0 ] || exec >"$HPCMOE_TEST_RECORDS/rank-$r.txt" 2>&1
exec "$0" -m mpi4py -m pytest --basetemp="$TMPDIR/rank-$r" --junitxml="$HPCMOE_TEST_RECORDS/rank-$r.xml" "$@" """
"""What mpiexec starts, for the options of a rank depend on which it is; only rank 0 has the terminal."""
PROGRAM_OF = {"mpich": "mpichversion", "openmpi": "ompi_info"}
"""A program by which a venv tells its MPI."""
OPEN_MPI = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", "OMPI_MCA_mpi_yield_when_idle": "1",
    "OMPI_MCA_rmaps_base_oversubscribe": "1", "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    "OMPI_MCA_hwloc_base_binding_policy": "none", "PRTE_MCA_hwloc_default_binding_policy": "none",
}
"""As in the Makefile: more ranks than cores, also as root."""
PRINTED = "printed.txt"
"""What a row printed that had no terminal."""
LANES = (("unit",), ("launch",), ("mpi", "slurm"))
"""Which rows of one process run at the same time: those of each lane one after another. With two cores they take hardly
longer, for some compute in one process, and the others mostly wait: for Slurm's clocks, and for ranks that do not
answer. What takes all cores is "large", and runs alone."""


def options() -> tuple[argparse.Namespace, list[str]]:
    """The command line, and what of it is for pytest."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--unit", action="store_true", help="the tests in one process")
    parser.add_argument("--mpi", action="append", default=[], metavar="MPI:RANKS,...", help="the MPI tests")
    parser.add_argument("--launch", action="store_true", help="whole jobs")
    parser.add_argument("--slurm", action="store_true", help="the job scripts, in a Slurm of their own")
    parser.add_argument("--slow", action="store_true", help="only tests marked slow, which are left out otherwise")
    parser.add_argument("--limit", type=float, help="seconds for each run (1200; with --slow 3600)")
    parser.add_argument("--python", action="append", default=[], metavar="MPI=PATH", help="of that MPI's venv")
    parser.add_argument("--mpiexec", action="append", default=[], metavar="MPI=COMMAND", help="else beside its Python")
    parser.add_argument("--tests", type=Path, default=Path(__file__).parent, help="folder with unit/, mpi/, launch/ …")
    parser.add_argument("--out", type=Path, default=Path("build/test"), help="folder for records")
    chosen, rest = parser.parse_known_args()
    chosen.limit = chosen.limit or (3600 if chosen.slow else 1200)
    chosen.tests, chosen.out = chosen.tests.resolve(), chosen.out.resolve()
    return chosen, rest


def plan(chosen: argparse.Namespace, rest: list[str]) -> list[Run]:
    """The runs that were asked for, in the order of their cost."""
    plain = ["--no-summary", "--tb=short", f"--color={'yes' if sys.stdout.isatty() else 'no'}"]
    common = [*plain, "-m", "slow" if chosen.slow else "not slow", *rest]
    runs = [_alone("unit", chosen, common)] if chosen.unit else []
    for text in chosen.mpi:
        mpi, _, sizes = text.partition(":")
        python, mpiexec = _programs(mpi, chosen)
        for ranks in sizes.split(","):
            if not ranks.isdigit():
                sys.exit(f"--mpi {text}: should be MPI:RANKS,...")
            runs.append(Run("mpi", mpi, int(ranks), (
                *mpiexec, "-n", ranks, "sh", "-c", ON_A_RANK, python, "-x", "-p", "no:cacheprovider", "--with-mpi",
                *common, str(chosen.tests / "mpi"))))
    if chosen.launch and not chosen.slow:
        runs += [_alone("launch", chosen, [*plain, "-m", "not slow and not large", *rest]),
                 _alone("large", chosen, [*plain, "-m", "not slow and large", *rest], "launch")]
    elif chosen.launch:
        runs.append(_alone("launch", chosen, common))
    return runs + ([_alone("slurm", chosen, common)] if chosen.slurm else [])


def _alone(what: str, chosen: argparse.Namespace, common: list[str], folder: str = "") -> Run:
    report = f"--junitxml={chosen.out / what / 'rank-0.xml'}"
    return Run(what, "", 1, (sys.executable, "-m", "pytest", "--continue-on-collection-errors", report, *common,
                             str(chosen.tests / (folder or what))))


def _programs(mpi: str, chosen: argparse.Namespace) -> tuple[str, list[str]]:
    """The Python and the mpiexec of `mpi`: as told, or in our own venv, or where the Makefile puts it."""
    pythons, launchers = (dict(text.split("=", 1) for text in texts) for texts in (chosen.python, chosen.mpiexec))
    own = Path(sys.executable)
    if mpi in pythons:
        python = Path(pythons[mpi]).absolute()
    elif own.with_name(PROGRAM_OF.get(mpi, "?")).exists():
        python = own
    else:
        python = Path(".venv" if mpi == "mpich" else f".venv-{mpi}").absolute() / "bin" / "python"
    return str(python), shlex.split(launchers.get(mpi, str(python.with_name("mpiexec"))))


def side_by_side(runs: list[Run], slow: bool) -> list[list[list[Run]]]:
    """Lanes that run at the same time, then each other row alone; slow launch tests too take all cores."""
    light = [run for run in runs if run.ranks == 1 and run.what != "large" and not (slow and run.what == "launch")]
    lanes = [[run for what in lane for run in light if run.what == what] for lane in LANES]
    return [some for some in ([lane for lane in lanes if lane], *([[run]] for run in runs if run not in light)) if some]


def execute_all(lanes: list[list[Run]], limit: float, out: Path) -> list[Outcome]:
    """Runs lanes at the same time. The first has the terminal; what the others print comes behind it."""
    first, *others = lanes
    over = threading.Event()
    begun: list[tuple[subprocess.Popen, str]] = []

    def follow(lane: list[Run]) -> list[Outcome]:
        return [execute(run, limit, out, begun, quiet=True) for run in lane if not over.is_set()]
    with ThreadPoolExecutor(len(lanes)) as pool:
        later = [pool.submit(follow, lane) for lane in others]
        try:
            outcomes = [execute(run, limit, out, begun) for run in first]
            for future in later:
                for outcome in future.result():
                    outcomes.append(outcome)
                    said = (out / outcome.run.name / PRINTED).read_text(errors="replace")
                    print(f"\n== {outcome.run.title}\n{said}", end="", flush=True)
        except BaseException:  # the runner itself is told to end
            over.set()
            while not all(future.done() for future in later):
                for process, scratch in list(begun):
                    _end(process, scratch)
                time.sleep(0.1)
            raise
    return outcomes


def execute(run: Run, limit: float, out: Path, begun: list[tuple[subprocess.Popen, str]],
            quiet: bool = False) -> Outcome:
    """Runs one row to its end, or to its time limit; notes what it starts in `begun`. Quiet: prints to `PRINTED`."""
    folder = out / run.name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    began = time.time()
    with tempfile.TemporaryDirectory(prefix="hpcmoe-", ignore_cleanup_errors=True) as scratch, ExitStack() as files:
        if not quiet:
            print(f"\n== {run.title}", flush=True)
        printed = files.enter_context((folder / PRINTED).open("w")) if quiet else None
        code = _wait(run, limit, _environment(run, folder, scratch), folder, begun, printed)
    return judge(run, code, limit, [read(folder, number) for number in range(run.ranks)], folder, time.time() - began)


def _environment(run: Run, folder: Path, scratch: str) -> dict[str, str]:
    env = dict(os.environ, HPCMOE_TEST_RECORDS=str(folder), TMPDIR=scratch)
    env.pop("PYTHONDONTWRITEBYTECODE", None)  # hundreds of processes would compile everything again
    env |= {name: os.environ.get(name, value) for name, value in OPEN_MPI.items()}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if run.ranks > cores:  # BLAS threads would only take the cores from other ranks
        env["OPENBLAS_NUM_THREADS"] = "1"
    return env


def _wait(run: Run, limit: float, env: dict[str, str], folder: Path, begun: list[tuple[subprocess.Popen, str]],
          printed: IO[str] | None) -> int | str:
    """The exit code; or in words why there is none."""
    try:
        process = subprocess.Popen(run.command, env=env, stdin=subprocess.DEVNULL, stdout=printed, stderr=printed,
                                   start_new_session=True)
    except OSError as error:
        return f"cannot start {run.command[0]}: {error.strerror}"
    begun.append((process, env["TMPDIR"]))
    try:
        return process.wait(limit)
    except subprocess.TimeoutExpired:
        _ask(run, folder, _left(process, env["TMPDIR"]))
        return f"no end within {limit:g} s"
    finally:
        _end(process, env["TMPDIR"])


def _ask(run: Run, folder: Path, alive: list[int]) -> None:
    """Has each rank that is alive, and has said that it listens, write where it is."""
    for number in range(run.ranks):
        if (pid := read(folder, number).pid) in alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGUSR2)
    time.sleep(1)


def _end(process: subprocess.Popen, scratch: str) -> None:
    """Ends all that `process` started and that is still there."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        until = time.time() + 5
        for pid in _left(process, scratch):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, sign)
        while _left(process, scratch) and time.time() < until:
            time.sleep(0.05)


def _left(process: subprocess.Popen, scratch: str) -> list[int]:
    """`process` and those that descend from it, while they live. Launchers give ranks groups and sessions of their own,
    so they are known by the folder for temporary files that only this run has."""
    found = [process.pid] if process.poll() is None else []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if f"TMPDIR={scratch}".encode() in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
    return found


def main() -> int:
    """All rows, then the report."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends the run that is on, too
    chosen, rest = options()
    runs = plan(chosen, rest)
    outcomes = [outcome for lanes in side_by_side(runs, chosen.slow)
                for outcome in execute_all(lanes, chosen.limit, chosen.out)]
    return report(sorted(outcomes, key=lambda outcome: runs.index(outcome.run)))


if __name__ == "__main__":
    sys.exit(main())
