"""The lock on an output: one job at a time, and none that a dead job keeps."""

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from helpers import ROOT

from hpcmoe.errors import JobError
from hpcmoe.files import lock
from hpcmoe.files.lock import Holder


@pytest.fixture
def output(tmp_path) -> Path:
    return tmp_path / "out.h5"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Hearts that beat fast, and no batch system."""
    for name, value in (("BEAT", 0.1), ("STALE", 0.8), ("LOOK", 0.02)):
        monkeypatch.setattr(lock, name, value)
    for name in (*lock.JOB_VARIABLES, "SLURM_RESTART_COUNT"):
        monkeypatch.delenv(name, raising=False)


def leave(output: Path, **changes) -> Holder:
    """What a holder leaves that was killed: this process in another time, unless `changes` say otherwise."""
    with lock.taken(output):
        holder = replace(lock.read(lock.beside(output)), token="old", **changes)
    lock.beside(output).write_text(json.dumps(asdict(holder)))
    return holder


def test_a_lock_says_who_holds_it_and_goes_with_its_holder(output, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    with lock.taken(output) as held:
        held.check()
        holder = lock.read(lock.beside(output))
        assert holder.process == os.getpid() and "job 77" in str(holder) and lock.lives(holder)
    assert not list(output.parent.iterdir())


def test_it_goes_where_the_holder_fails(output):
    with pytest.raises(ZeroDivisionError), lock.taken(output):
        print(1 / 0)
    assert not list(output.parent.iterdir())


def test_a_second_job_is_refused_at_once_and_changes_nothing(output):
    with lock.taken(output) as held:
        with pytest.raises(JobError, match=f"in use by process {os.getpid()} on "), lock.taken(output):
            pass
        held.check()


@pytest.fixture
def patient(monkeypatch):
    """A heart that stands still is respected for so long that a busy machine does not matter."""
    monkeypatch.setattr(lock, "STALE", 60.0)


def at_once(output: Path, *known) -> bool:
    """Whether the lock was taken without a look at its heart."""
    begin = time.monotonic()
    with lock.taken(output, *known) as held:
        held.check()
    return time.monotonic() - begin < 30


def test_a_holder_that_is_known_to_be_dead_is_succeeded_at_once(output, patient):
    """Its own job tells, from another host."""
    leave(output, system="elsewhere", host="elsewhere")
    assert at_once(output, lock.Held(lock.beside(output), "old"))


def test_another_holder_is_not(output):
    with lock.taken(output), pytest.raises(JobError, match="in use by"), \
            lock.taken(output, lock.Held(lock.beside(output), "old")):
        pass


def test_a_process_that_is_gone_holds_nothing(output):
    dead = subprocess.Popen(["true"])
    leave(output, process=dead.pid)  # nobody has waited for it: it may be a zombie still
    time.sleep(0.2)
    with lock.taken(output) as held:
        held.check()
    dead.wait()


def test_a_number_that_another_process_has_now_holds_nothing(output):
    leave(output, started=1)
    with lock.taken(output) as held:
        held.check()


def test_on_another_host_a_heart_that_beats_is_respected(output):
    leave(output, system="another host", started=1)
    code = (f"import time, os\nwhile True:\n    os.utime({str(lock.beside(output))!r})\n    print(flush=True)\n"
            "    time.sleep(0.1)")
    heart = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    heart.stdout.readline()  # it beats
    with pytest.raises(JobError, match="in use by"), lock.taken(output):
        pass
    heart.kill()
    heart.communicate()


def test_on_another_host_one_that_stands_still_is_not(output, monkeypatch):
    leave(output, system="another host")
    begin = time.monotonic()
    with lock.taken(output) as held:
        held.check()
    assert time.monotonic() - begin > 0.7, "it was given its time"
    leave(output, system="another host")
    old = time.time() - 100
    os.utime(lock.beside(output), (old, old))
    monkeypatch.setattr(lock, "STALE", 60.0)
    assert at_once(output), "it had it before"


def test_clocks_of_hosts_that_differ_do_not_matter(output, monkeypatch):
    leave(output, system="another host")
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 1e5)
    begin = time.monotonic()
    with lock.taken(output):
        assert time.monotonic() - begin > 0.7


def test_a_job_that_was_started_again_elsewhere_goes_on_at_once(output, monkeypatch, patient):
    leave(output, system="another host", job="77", restarts="0")
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert at_once(output)


def test_a_lock_that_says_nothing_goes_by_its_heart(output):
    lock.beside(output).write_text("{")
    with lock.taken(output) as held:
        held.check()


def test_what_cannot_be_read_is_said_at_once(output):
    lock.beside(output).mkdir()
    with pytest.raises(JobError, match=r"out\.h5\.lock cannot be written: Is a directory"), lock.taken(output):
        pass
    lock.beside(output).rmdir()
    lock.beside(output).symlink_to("nowhere")
    with pytest.raises(JobError, match="leads nowhere"), lock.taken(output):
        pass


def test_a_process_that_is_hidden_may_live(output, monkeypatch):
    """Another user's, where /proc is mounted so: only its heart tells."""
    holder = leave(output, process=2**22 + 1)
    assert lock.lives(holder) is False
    monkeypatch.setattr(lock.place, "alive", lambda process: True)
    assert lock.lives(holder) is None


def test_its_own_lock_is_nobody_elses(output, monkeypatch):
    """NFS may make a link, and say that it was there."""
    link = os.link

    def link_and_complain(source, target):
        link(source, target)
        raise FileExistsError
    monkeypatch.setattr(os, "link", link_and_complain)
    with lock.taken(output) as held:
        held.check()


def test_a_claim_of_one_who_died_of_an_earlier_lock_goes(output):
    lock.beside(output).with_name(f"out.h5.lock.{'0' * lock.DIGITS}").write_text("{}")
    with lock.taken(output) as held:
        held.check()
    assert not list(output.parent.iterdir())


def test_a_holder_that_was_taken_for_dead_is_told(output):
    with lock.taken(output) as held:
        leave_other = json.loads(lock.beside(output).read_text()) | {"token": "other", "host": "n2"}
        lock.beside(output).write_text(json.dumps(leave_other))
        with pytest.raises(JobError, match=r"taken for dead.* on n2"):
            held.check()
    assert lock.read(lock.beside(output)).token == "other", "the other's lock stays"


@pytest.mark.parametrize(("before", "links"), [
    ("nothing", True), ("a stale lock", True), ("a stale lock", False),
    ("a stale lock, and a claim of one who died of it", True)])
def test_of_many_that_race_for_it_one_gets_it(output, before, links):
    """Also on file systems without hard links."""
    if before != "nothing":
        dead = subprocess.Popen(["true"])
        dead.wait()
        leave(output, process=dead.pid)
    if before.endswith("it"):
        claim = lock.beside(output).with_name(
            f"out.h5.lock.{lock.hashlib.sha256(lock.beside(output).read_bytes()).hexdigest()[:16]}")
        claim.write_text(lock.beside(output).read_text())
    code = ("import sys, os, time\nfrom pathlib import Path\nfrom hpcmoe.errors import JobError\n"
            "from hpcmoe.files import lock\nlock.LOOK = 0.01\n"
            + ("" if links else "def no(*two):\n    raise PermissionError(1, 'no links')\nos.link = no\n") +
            "print('here', flush=True)\nwhile not Path(sys.argv[2]).exists(): pass\n"
            "try:\n    with lock.taken(Path(sys.argv[1])) as held:\n        time.sleep(1.5)\n        held.check()\n"
            "        print('got it')\n"
            "except JobError as error:\n    print(error)\n")
    racers = [subprocess.Popen([sys.executable, "-c", code, str(output), str(output.with_name("go"))], cwd=ROOT,
                               stdout=subprocess.PIPE, text=True) for _ in range(4)]
    assert [racer.stdout.readline() for racer in racers] == ["here\n"] * 4
    output.with_name("go").touch()
    said = [racer.communicate(timeout=60)[0].strip() for racer in racers]
    assert said.count("got it") == 1 and sum("in use by" in words for words in said) == 3, said
    assert [path.name for path in output.parent.iterdir()] == ["go"]
