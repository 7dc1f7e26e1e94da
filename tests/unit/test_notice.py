"""Notice that a job is to end: signals, and time."""

import os
import signal
import subprocess
import sys
import time

import pytest
from helpers import ROOT

from hpcmoe import notice
from hpcmoe.notice import Notice, parse_left, slurm_seconds, words


def test_without_a_signal_and_a_limit_there_is_no_reason():
    assert Notice().reason(1e9) == 0


@pytest.mark.parametrize("number", notice.SIGNALS)
def test_a_signal_is_noted_and_does_not_kill(number):
    heard = Notice()
    with heard.listening():
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), signal.SIGUSR1)  # another way that the same one took
    assert heard.reason() == number and words(number) == f"{number.name} came"


def test_afterwards_signals_mean_what_they_did():
    before = [signal.getsignal(number) for number in notice.SIGNALS]
    with Notice().listening():
        assert signal.getsignal(signal.SIGTERM) != before[1]
    assert [signal.getsignal(number) for number in notice.SIGNALS] == before


def test_a_second_signal_ends_the_process_at_once():
    code = ("import os, signal, time; from hpcmoe import notice\nnotice.ONE = 0.01\nwith notice.Notice().listening():\n"
            "    os.kill(os.getpid(), signal.SIGUSR1)\n    time.sleep(0.1)\n    os.kill(os.getpid(), signal.SIGTERM)\n"
            "    time.sleep(9)\n")
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=30)
    assert ended.returncode == -signal.SIGTERM


def test_the_end_of_the_time_is_a_reason_as_soon_as_a_step_may_not_fit():
    heard = Notice()
    heard.limit(100.0, time.monotonic())
    assert heard.reason(50.0) == 0 and heard.reason(96.0) == notice.TIME
    heard.limit(1e6, time.monotonic() - 1e6 + 100)
    assert heard.reason() == 0 and heard.reason(45.0) == notice.TIME, "no more than a minute is left free"
    heard.limit(1.0, time.monotonic() - 1.0)
    assert heard.reason() == notice.TIME and "time" in words(notice.TIME)


@pytest.mark.parametrize(("text", "seconds"), [("1-02:03:04", 93784), ("2:03:04", 7384), ("03:04", 184), ("0:05", 5),
                                               ("UNLIMITED", None), ("NOT_SET", None), ("INVALID", None), ("", None)])
def test_what_slurm_says_of_the_time_left(text, seconds):
    assert parse_left(text) == seconds


def test_slurm_is_asked_in_its_jobs_only(tmp_path, monkeypatch):
    asked = tmp_path / "squeue"
    asked.write_text('#!/bin/sh\n[ "$*" = "--noheader --jobs 7 --format %L" ] && echo 1:00:00\n')
    asked.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert slurm_seconds({}) is None
    assert slurm_seconds({"SLURM_JOB_ID": "7"}) == 3600
    assert slurm_seconds({"SLURM_JOB_ID": "8"}) is None
    end = str(int(time.time()) + 90)
    assert 80 < slurm_seconds({"SLURM_JOB_ID": "8", "SLURM_JOB_END_TIME": end}) <= 90
    monkeypatch.setenv("PATH", "/nowhere")
    assert slurm_seconds({"SLURM_JOB_ID": "7"}) is None
