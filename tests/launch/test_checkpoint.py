"""A job that is told to end: all ranks finish the step, commit, and end with code 75; the same command goes on."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from launched import Running, alive, answers, mpiexec, wait_for
from models import TINY

from hpcmoe import config, tables
from hpcmoe.engine import inputs
from hpcmoe.errors import CHECKPOINTED
from hpcmoe.files import begun, lock, parts, prompts

RANKS, PROMPTS, NEW = 4, 40, 16


def make(tmp_path: Path) -> Path:
    """A job of many steps that is reproducible."""
    (tmp_path / "spec.toml").write_text(tables.dump(TINY))
    prompts.write(tmp_path / "p.h5", [str(n) for n in range(PROMPTS)],
                  [np.arange(n % 7, n % 7 + 1 + n % 5, dtype=np.int32) for n in range(PROMPTS)])
    path = tmp_path / "job.toml"
    path.write_text('model = "spec.toml"\nprompts = "p.h5"\noutput = "out.h5"\n[compute]\nreproducible = true\n'
                    f'[generate]\nmax_new_tokens = {NEW}\nignore_eos = true\ntemperature = 1.0\n'
                    '[schedule]\nmax_sequences = 2\n[checkpoint]\nevery = 0.1\n[exchange]\nmode = "alltoallv"\n')
    return path


@pytest.fixture
def job(tmp_path: Path) -> Path:
    return make(tmp_path)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> dict[str, bytes]:
    """The answers of a run in which nothing happens, on one rank."""
    job = make(tmp_path_factory.mktemp("undisturbed"))
    ended = mpiexec(1, "-m", "hpcmoe", "run", str(job))
    assert ended.returncode == 0, ended.stderr
    return answers(job.with_name("out.h5"), PROMPTS)


def go_on(job: Path, undisturbed: dict[str, bytes], ranks: int = 3, *arguments: str) -> str:
    """Runs the job to its end, which leaves the right answers and nothing else; what it said."""
    ended = mpiexec(ranks, "-m", "hpcmoe", "run", str(job), *arguments)
    assert ended.returncode == 0, ended.stderr
    assert answers(job.with_name("out.h5"), PROMPTS) == undisturbed
    assert [path.name for path in job.parent.glob("*out.h5*")] == ["out.h5"]
    with h5py.File(job.with_name("out.h5")) as file:  # whichever run gave them
        assert (file["first_token"][()] > 0).all()
    return ended.stderr


@pytest.mark.parametrize(("number", "whom"), [(signal.SIGUSR1, 0), (signal.SIGTERM, 3), (signal.SIGTERM, None)],
                         ids=["USR1 to rank 0", "TERM to rank 3", "TERM to mpiexec"])
def test_a_signal_ends_all_ranks_with_75_and_the_same_command_goes_on(job, undisturbed, number, whom):
    output = job.with_name("out.h5")
    running = Running(RANKS, job)
    pids = running.ranks()
    wait_for(lambda: parts.files(output))
    os.kill(running.process.pid if whom is None else pids[whom], number)
    assert running.wait(60) == CHECKPOINTED, running.said
    said = [line for line in running.said.splitlines() if "checkpointed" in line]
    assert len(said) == 1 and f"{number.name} came" in said[0], running.said
    assert "error" not in running.said and not output.exists() and parts.files(output) and begun.files(output)
    go_on(job, undisturbed, 3, "--set", "exchange.mode=auto")


def test_after_kill_9_a_run_goes_on_where_the_last_commits_were(job, undisturbed):
    """A lock and unfinished files are left, of ranks that did not commit together."""
    output = job.with_name("out.h5")
    running = Running(RANKS, job)
    pids = running.ranks()
    wait_for(lambda: begun.files(output))
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    assert running.wait(15) != 0
    assert lock.beside(output).exists()
    saved = begun.gather(output, inputs.read(config.load(job)).identity(config.load(job)))
    assert saved and all(0 < len(one.tokens) < NEW for one in saved)
    assert "waiting" not in go_on(job, undisturbed, 1, "--set", "schedule.max_sequences=5")


def test_a_second_job_on_the_same_output_is_refused(job):
    running = Running(RANKS, job, "--set", "generate.max_new_tokens=60")
    wait_for(lambda: lock.beside(job.with_name("out.h5")).exists())
    second = mpiexec(3, "-m", "hpcmoe", "run", str(job), "--set", "generate.max_new_tokens=60")
    lines = [line for line in second.stderr.splitlines() if line.startswith("hpcmoe: error:")]
    assert second.returncode == 2 and len(lines) == 1 and "is in use by process" in lines[0], second.stderr
    running.process.terminate()
    assert running.wait(60) == CHECKPOINTED and not lock.beside(job.with_name("out.h5")).exists()


def test_a_part_that_was_cut_off_is_named_and_its_prompts_are_answered_again(job, undisturbed):
    output = job.with_name("out.h5")
    running = Running(RANKS, job)
    wait_for(lambda: len(parts.files(output)) > 2)
    running.process.terminate()
    assert running.wait(60) == CHECKPOINTED
    part, saved = parts.files(output)[0], begun.files(output)[0]
    for path in (part, saved):
        path.write_bytes(path.read_bytes()[:-100])
    checked = subprocess.run([sys.executable, "-m", "hpcmoe", "check", str(job)], capture_output=True, text=True)
    assert checked.returncode == 0 and part.name in checked.stdout.replace("\n", "") and part.exists()
    said = go_on(job, undisturbed)
    assert f"{part.name} is truncated: left out, its prompts are answered again" in said


LIMITED = """
import resource, signal
from hpcmoe.engine import crew
whole = crew.generate
def limited(*given):
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (9_000, 9_000))
    return whole(*given)
crew.generate = limited
from hpcmoe.__main__ import main
main()
"""
"""As on a disk that has no room for another part."""


def test_a_full_disk_is_said_and_what_was_committed_stays(job, undisturbed):
    output = job.with_name("out.h5")
    running = Running(RANKS, job)
    wait_for(lambda: parts.files(output))
    running.process.terminate()
    assert running.wait(60) == CHECKPOINTED
    before = {path.name: path.read_bytes() for path in parts.files(output)}
    full = mpiexec(3, "-c", LIMITED, "run", str(job), "--set", "checkpoint.every=1e9")
    lines = [line for line in full.stderr.splitlines() if line.startswith("hpcmoe: error:")]
    assert full.returncode == 2 and len(lines) == 1 and "cannot be written: File too large" in lines[0], full.stderr
    assert before.items() <= {path.name: path.read_bytes() for path in parts.files(output)}.items()
    go_on(job, undisturbed)


def test_a_job_ends_ahead_of_its_walltime(job):
    running = Running(3, job, "--set", "checkpoint.walltime=4", "--set", "generate.max_new_tokens=60",
                      "--set", "schedule.max_sequences=1")
    assert running.wait(60) == CHECKPOINTED, running.said
    assert "its time is nearly over" in running.said


def test_time_that_is_over_before_the_first_step_is_an_error(job):
    """Code 75 would start it again and again."""
    ended = mpiexec(2, "-m", "hpcmoe", "run", str(job), "--set", "checkpoint.walltime=0.01")
    assert ended.returncode == 2 and "passed before the first step" in ended.stderr, ended.stderr
    assert not parts.files(job.with_name("out.h5"))


def test_ranks_end_with_their_launchers_daemon(job):
    """Where it is killed, nobody else can end them."""
    running = Running(RANKS, job, "--set", "generate.max_new_tokens=60")
    pids = running.ranks()
    daemon, = {int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1]) for pid in pids}
    os.kill(daemon, signal.SIGKILL)
    wait_for(lambda: not any(map(alive, pids)), 15)
    assert running.wait(15) != 0
