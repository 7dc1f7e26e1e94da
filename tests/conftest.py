"""What all tests share: the ranks, a folder that they all see, verdicts that they agree on, and a record of each test.

Nothing here imports mpi4py before a test asks for it, so that unit tests run without MPI.
"""

import contextlib
import faulthandler
import json
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from hpcmoe import launch
from hpcmoe.launcher import tasks_by_launcher

hypothesis.settings.register_profile("hpcmoe", deadline=None)  # a busy machine is no failure
hypothesis.settings.load_profile("hpcmoe")

MANY = 4
"""More ranks than these share so few cores that a test takes many times as long."""
LAUNCHERS = ("PMI_RANK", "PMIX_RANK", "OMPI_COMM_WORLD_RANK", "SLURM_PROCID")
"""Where launchers leave a process's rank."""


@pytest.fixture(scope="session")
def comm() -> Any:
    """mpi4py's COMM_WORLD; a world of one without mpiexec."""
    MPI = pytest.importorskip("mpi4py.MPI", reason="not installed: mpi4py, or no MPI for it")
    return MPI.COMM_WORLD


@pytest.fixture(scope="session")
def shared_tmp(comm: Any, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A folder that all ranks see, removed at the end."""
    folder = comm.bcast(tempfile.mkdtemp(prefix="hpcmoe-") if comm.rank == 0 else None)
    yield Path(folder)
    if not request.session.testsfailed:  # else the others may be gone, or wait elsewhere
        launch.meet(comm)
    if comm.rank == 0:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def everywhere(comm: Any) -> Callable[[list[str]], None]:
    """`everywhere(problems)` fails on all ranks if any rank has a problem, and says which; collective.

    An `assert` that fails on one rank would leave the others waiting in their next exchange.
    """
    def verdict(problems: list[str]) -> None:
        __tracebackhide__ = True
        launch.meet(comm)
        found = [f"rank {rank}: {problem}" for rank, listed in enumerate(comm.allgather(list(problems)))
                 for problem in listed]
        if found:
            pytest.fail("\n".join(found), pytrace=False)
    return verdict


def pytest_configure(config: pytest.Config) -> None:
    """Under tests/matrix.py each process keeps a record; under mpiexec all ranks must draw the same examples."""
    folder = os.environ.pop("HPCMOE_TEST_RECORDS", "")  # not for processes that tests start
    rank = next((int(os.environ[name]) for name in LAUNCHERS if name in os.environ), None)
    if folder:
        config.pluginmanager.register(Recorder(Path(folder), rank))
    if rank is not None:
        with contextlib.suppress(ImportError):
            from hypothesis import settings
            settings.register_profile("ranks", derandomize=True, database=None, deadline=None)
            settings.load_profile("ranks")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """On many ranks the cases that `many_ranks` does not name are slow, before `-m` chooses. Raises `UsageError`."""
    if tasks_by_launcher() <= MANY:
        return
    named, there = set(), set()
    for item in items:
        if mark := item.get_closest_marker("many_ranks"):
            case = item.callspec.id if hasattr(item, "callspec") else ""
            test = item.nodeid.partition("[")[0]
            named |= {(test, name) for name in mark.args}
            there.add((test, case))
            if case not in mark.args:
                item.add_marker("slow")
    if named - there and not any("::" in argument for argument in config.args):
        raise pytest.UsageError(f"many_ranks names cases that are none: {sorted(named - there)}")


class Recorder:
    """Writes what happens to each test, a JSON line at once: a rank that is killed leaves what it had come to."""

    def __init__(self, folder: Path, rank: int | None) -> None:
        self._file = (folder / f"rank-{rank or 0}.jsonl").open("w", buffering=1)
        self._stacks = (folder / f"rank-{rank or 0}.stack").open("w")
        self._launched = rank is not None
        faulthandler.register(signal.SIGUSR2, self._stacks)  # where it hangs, asks the runner before it ends us
        self._write(pid=os.getpid())

    def _write(self, **record: Any) -> None:
        self._file.write(json.dumps(record) + "\n")

    def pytest_sessionstart(self) -> None:
        """The size of the world: a library that is not mpiexec's makes N worlds of one."""
        if self._launched:
            from mpi4py import MPI
            self._write(size=MPI.COMM_WORLD.size, library=MPI.Get_library_version().split("\n")[0].strip("\0 "))

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """A module that cannot be imported, or skips as a whole."""
        if report.outcome != "passed":
            self._end(report)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """The tests to come."""
        self._write(collected=[item.nodeid for item in session.items])

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """A test begins."""
        self._write(began=nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """A phase of a test ends; only the last one and those that did not pass tell something."""
        if report.outcome != "passed" or report.when == "teardown":
            self._end(report)

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        """A test is over, with what its fixtures do at the end."""
        self._write(finished=nodeid)

    def _end(self, report: pytest.CollectReport | pytest.TestReport) -> None:
        why, text = report.outcome, ""
        if report.skipped and isinstance(report.longrepr, tuple):
            why = report.longrepr[2].removeprefix("Skipped: ")
        elif hasattr(report, "wasxfail"):
            why = f"expected to fail: {report.wasxfail}"
        elif report.failed:
            crash = getattr(report.longrepr, "reprcrash", None)
            why = crash.message if crash else report.longreprtext
            text = "\n".join([report.longreprtext, *(f"--- {name}\n{said}" for name, said in report.sections)])
        self._write(ended=report.nodeid, outcome=report.outcome, why=why, text=text)

    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        """Without a test to run a rank would abort the others; the runner counts for itself."""
        if exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED:
            session.exitstatus = pytest.ExitCode.OK
        plugins = session.config.pluginmanager
        for plugin in plugins.get_plugins():
            if type(plugin).__name__ == "MPIPlugin":  # it would print a page of settings after every run
                plugins.unregister(plugin)
