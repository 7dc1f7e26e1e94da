"""`bench scaling`: the tables and the plot of runs on different numbers of ranks."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers import answer, assert_one_line, command, origin, step_time

from hpcmoe import shard
from hpcmoe.files import results
from hpcmoe.files.parts import Part
from hpcmoe.report import scaling


def put_run(folder: Path, ranks: int, prompts: int, wall: float, words: str = "", identity: str = "a job\n") -> Path:
    """Results of `prompts` prompts on two ranks a host, 100 new tokens in `wall` seconds for each prompt of 8."""
    output = folder / f"{ranks}-{prompts}.h5"
    answers = tuple(answer(n, 1) for n in range(prompts))
    piece = Part(answers, np.ones((2, 4), np.int64), (replace(step_time(0, wall=wall), chosen=100 * prompts // 8),))
    table = results.tabulate([piece])
    ids = tuple(str(n) for n in range(prompts))
    given = replace(origin(shard.marked(identity, words), ranks), hosts=tuple(f"host{n // 2}" for n in range(ranks)))
    results.write(output, given, results.Results(answers, ids, ids, piece.load, table, results.by_layer([piece])))
    return output


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """Eight prompts on 2, 4 and 8 ranks, and 2 and 4 prompts on 2 and 4."""
    return [put_run(tmp_path, 8, 8, 0.5), put_run(tmp_path, 2, 8, 1.0), put_run(tmp_path, 4, 8, 0.5),
            put_run(tmp_path, 2, 2, 0.25, "0/4"), put_run(tmp_path, 4, 4, 0.5, "0/2")]


def rows(page: str, kind: str) -> list[list[str]]:
    """The numbers of one table."""
    lines = page.split(f"{kind} scaling", 1)[1].splitlines()[2:]
    return [line.split() for line in lines[:next((n for n, line in enumerate(lines) if not line.strip()), None)]]


def test_the_tables(runs, capsys, monkeypatch):
    ended = command(capsys, monkeypatch, "bench", "scaling", *runs)
    assert ended.code == 0, ended
    strong, weak = (rows(ended.out, kind) for kind in ("Strong", "Weak"))
    # hosts, ranks, prompts, tokens, time and its unit, tokens/s, speedup, efficiency and %, exposed and %
    assert [row[:4] for row in strong] == [["1", "2", "8", "100"], ["2", "4", "8", "100"], ["4", "8", "8", "100"]]
    assert [row[6:9] for row in strong] == [["100.0", "1.00", "100"], ["200.0", "2.00", "100"], ["200.0", "2.00", "50"]]
    assert [row[1:3] for row in weak] == [["2", "2"], ["4", "4"], ["8", "8"]]
    assert [row[7:9] for row in weak] == [["1.00", "100"], ["1.00", "50"], ["2.00", "50"]]


def test_strong_scaling_alone(runs, capsys, monkeypatch):
    ended = command(capsys, monkeypatch, "bench", "scaling", *runs[:3])
    assert ended.code == 0 and "Strong" in ended.out and "Weak" not in ended.out


@pytest.mark.parametrize("suffix", [".png", ".pdf", ".svg"])
def test_the_plot(runs, tmp_path, capsys, monkeypatch, suffix):
    pytest.importorskip("matplotlib", reason="not installed: matplotlib")
    plot = tmp_path / f"scaling{suffix}"
    ended = command(capsys, monkeypatch, "bench", "scaling", *runs, "--plot", plot)
    assert ended.code == 0 and f"plot: {plot}" in ended.out
    head = {".png": b"\x89PNG", ".pdf": b"%PDF", ".svg": b"<?xml"}[suffix]
    assert plot.read_bytes().startswith(head) and not list(tmp_path.glob(".*"))


def test_without_matplotlib_the_tables_are_there(runs, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(scaling, "find_spec", lambda name: None)
    ended = command(capsys, monkeypatch, "bench", "scaling", *runs, "--plot", tmp_path / "scaling.png")
    assert ended.code == 0 and "Strong" in ended.out and "pip install 'hpcmoe[plot]'" in ended.out


def test_what_cannot_be_compared(runs, tmp_path, capsys, monkeypatch):
    other = put_run(tmp_path / "other", 4, 8, 1.0, identity="another job\n")
    odd = put_run(tmp_path / "odd", 4, 3, 1.0, "0/3")
    assert_one_line(command(capsys, monkeypatch, "bench", "scaling", *runs, other), 2, str(other), "another job")
    assert_one_line(command(capsys, monkeypatch, "bench", "scaling", *runs, odd), 2, str(odd), "3 prompts on 4 ranks")
    ended = command(capsys, monkeypatch, "bench", "scaling", *runs, "--plot", tmp_path / "scaling.gif")
    assert_one_line(ended, 2, "should end in .png")
