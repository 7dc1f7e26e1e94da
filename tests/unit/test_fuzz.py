"""Damaged inputs of every kind end in an error line or an answer, in seconds and little memory (tests/fuzz/run.py)."""

import re
import subprocess
import sys

import pytest
from helpers import ROOT

pytest.importorskip("gguf", reason="not installed: gguf")
pytest.importorskip("safetensors", reason="not installed: safetensors")


def fuzz(*options: str) -> str:
    """The last line of a run; what was wrong is pytest's to show."""
    done = subprocess.run([sys.executable, ROOT / "tests/fuzz/run.py", *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()[-1]


@pytest.mark.parametrize(("count", "seed"), [(100, 1), pytest.param(500, 2, marks=pytest.mark.slow)])
def test_damaged_inputs(count, seed):
    """And in make fuzz 5,000."""
    told = fuzz("--count", str(count), "--seed", str(seed))
    inputs, refused = map(int, re.findall(r"(\d+) inputs, (\d+) refused", told)[0])
    assert inputs == count
    assert count / 5 < refused < 0.98 * count, "inputs that are all refused, or never, find nothing"
