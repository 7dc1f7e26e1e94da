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


def test_500_damaged_inputs():
    told = fuzz("--count", "500", "--seed", "1")
    inputs, refused = map(int, re.findall(r"(\d+) inputs, (\d+) refused", told)[0])
    assert inputs == 500
    assert 100 < refused < 490, "inputs that are all refused, or never, find nothing"
