"""A few random kills; `make soak` makes 200."""

import subprocess
import sys
from pathlib import Path

import pytest

SOAK = Path(__file__).parents[1] / "soak.py"


@pytest.mark.parametrize("kills", [6, pytest.param(40, marks=pytest.mark.slow)])
def test_random_kills_lose_duplicate_and_change_nothing(kills):
    words = ("--kills", str(kills), "--ranks", "4,5", "--prompts", "40", "--tokens", "20")
    ended = subprocess.run([sys.executable, str(SOAK), *words], capture_output=True, text=True, timeout=1200)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert f"{kills} kills in" in ended.stdout and "0 prompts lost, 0 duplicated, 0 with other bits" in ended.stdout
