"""What a run says of itself while it goes: a line in a log, a bar on a terminal."""

import io
import os
import pty
import re
import select
import subprocess
import sys
import termios
import time

import numpy as np
import pytest
from helpers import job_files

from hpcmoe.engine import progress
from hpcmoe.engine.progress import Bar, Lines, Pace, Silence, So, open_progress


def so(finished, active, tokens, computed=(0, 0), exchange=((0, 0), (0, 0))) -> So:
    """How far two ranks are; `tokens` of each."""
    return So(finished, active, np.array([tokens, tokens]), np.array(computed), np.array(exchange))


@pytest.fixture
def clock(monkeypatch):
    """Time stands still, but for what is added to `clock[0]`."""
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


class TestWords:
    """Tokens/s, time left, imbalance and hidden part."""

    def test_the_first_call_is_where_it_begins(self, clock):
        """So behind the death of a rank nothing of before counts."""
        pace = Pace(100, 10_000)
        assert pace.words(so(50, 0, 2000)) == []
        clock[0] += 10
        assert pace.words(so(50, 10, 2500))[0] == "100.0 tokens/s"

    def test_time_left_by_prompts_that_are_done(self, clock):
        """Those under way count half: 20 + 10 of 100 in 30 s leave 70 s."""
        pace = Pace(100, 10**9)
        pace.words(so(0, 0, 0))
        clock[0] += 30
        assert "70 s left" in pace.words(so(20, 20, 900))

    def test_time_left_by_tokens_before_a_prompt_is_done(self, clock):
        pace = Pace(10, 1000)
        pace.words(so(0, 0, 0))
        assert not [w for w in pace.words(so(0, 10, 0)) if "left" in w]
        clock[0] += 10
        assert "90 s left at most" in pace.words(so(0, 10, 50))

    def test_no_longer_than_the_tokens_can_take(self, clock):
        pace = Pace(100, 1000)
        pace.words(so(0, 0, 0))
        clock[0] += 90
        assert "10 s left" in pace.words(so(1, 99, 450))

    def test_at_the_end_nothing_is_left(self, clock):
        pace = Pace(4, 100)
        pace.words(so(0, 0, 0))
        clock[0] += 1
        assert not [w for w in pace.words(so(4, 0, 50)) if "left" in w]

    def test_imbalance_and_hidden_part_since_the_last_words(self, clock):
        pace = Pace(100, 10_000)
        pace.words(so(0, 0, 0))
        clock[0] += 10
        found = pace.words(so(0, 9, 10, (300, 100), ((1000, 500), (1000, 300))))
        assert "imbalance 1.50" in found and "exchange 60 % hidden" in found
        found = pace.words(so(0, 9, 20, (400, 200), ((2000, 500), (2000, 300))))
        assert "imbalance 1.00" in found and "exchange 100 % hidden" in found
        found = pace.words(so(0, 9, 30, (400, 200), ((2000, 500), (2000, 300))))
        assert not [w for w in found if "imbalance" in w or "hidden" in w]

    def test_one_rank_has_no_imbalance(self):
        pace = Pace(9, 99)
        one = So(0, 1, np.array([5]), np.array([0]), np.array([[0, 0]]))
        pace.words(one)
        assert not [w for w in pace.words(So(0, 1, np.array([9]), np.array([7]), np.array([[0, 0]]))) if "imbal" in w]

    @pytest.mark.parametrize("seconds, words", [(0.4, "0 s"), (99, "99 s"), (100, "2 min"), (5940, "99 min"),
                                                (6000, "1.7 h"), (90_000, "25.0 h")])
    def test_spans(self, seconds, words):
        assert progress._span(seconds) == words


class TestLog:
    """A line every ten seconds."""

    def test_lines(self, clock, capsys):
        lines = Lines(40, 4000)
        for second in range(25):
            clock[0] = 1000.0 + second
            if lines.due():
                lines.update(so(second, 4, 50 * second, (60 * second, 40 * second), ((0, 0), (0, 0))))
        lines.update(so(40, 0, 2000))  # the end, not due yet
        lines.close()
        found = capsys.readouterr().err.splitlines()
        assert found == ["hpcmoe: 10 of 40 prompts, 1000 tokens, 100.0 tokens/s, 23 s left, imbalance 1.20",
                         "hpcmoe: 20 of 40 prompts, 2000 tokens, 100.0 tokens/s, 16 s left, imbalance 1.20"]

    def test_whose(self, monkeypatch):
        monkeypatch.setattr(sys, "stderr", io.StringIO())
        assert isinstance(open_progress(1, 5, 9), Silence) and not open_progress(1, 5, 9).due()
        assert isinstance(open_progress(0, 5, 9), Lines)


class TestBar:
    """On a terminal."""

    def test_a_bar(self, clock, monkeypatch):
        out = io.StringIO()
        monkeypatch.setattr(sys, "stderr", out)
        bar = Bar(40, 4000)
        bar.update(so(0, 0, 0))
        clock[0] += 0.5
        assert not bar.due()
        clock[0] += 9.5
        assert bar.due()
        bar.update(so(10, 4, 500, (600, 400), ((100, 20), (100, 20))))
        bar.close()
        last = out.getvalue().split("\r")[-1]
        assert " 25%|" in last and "10/40 prompts" in last
        assert "100.0 tokens/s, 23 s left, imbalance 1.20, exchange 80 % hidden" in last

    def test_a_run_on_a_terminal(self, tmp_path):
        """The whole program, its stderr a terminal of 120 columns: the bar ends full."""
        job = job_files(tmp_path, 3, 5, 4, rest='[generate]\nmax_new_tokens = 4\n[compute]\ndtype = "float32"\n')
        ours, theirs = pty.openpty()
        termios.tcsetwinsize(theirs, (30, 120))
        done = subprocess.Popen([sys.executable, "-m", "hpcmoe", "run", job], stdout=subprocess.DEVNULL, stderr=theirs)
        os.close(theirs)
        said, end = b"", time.monotonic() + 60
        while time.monotonic() < end and select.select([ours], [], [], 60)[0]:
            try:
                piece = os.read(ours, 1 << 16)
            except OSError:  # the terminal's other end is closed
                break
            said += piece
        assert done.wait(60) == 0, said
        assert re.search(r"100%\|.*\| 3/3 prompts, .* tokens/s", said.decode()), said


def test_asking_costs_next_to_nothing():
    """Before each step: here some 0.1 µs, and a step takes a millisecond at least."""
    lines = Lines(10, 10)
    lines.update(so(0, 0, 0))
    begin = time.perf_counter()
    for _ in range(10_000):
        lines.due()
    assert (time.perf_counter() - begin) / 10_000 < 2e-5  # a busy machine is no failure
