"""What the README shows works: its first job and its ten lines of h5py."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from models import TINY

from hpcmoe import tables
from hpcmoe.__main__ import cli
from hpcmoe.files import prompts

README = (Path(__file__).parents[2] / "README.md").read_text()


@pytest.fixture
def demo(tmp_path: Path) -> Path:
    """A folder with out/demo.h5."""
    (tmp_path / "spec.toml").write_text(tables.dump(TINY))
    prompts.write(tmp_path / "p.h5", ["a", "b"], [np.array([1, 2, 3], np.int32), np.array([4], np.int32)])
    (tmp_path / "job.toml").write_text('model = "spec.toml"\nprompts = "p.h5"\noutput = "out/demo.h5"\n')
    ended = subprocess.run([sys.executable, "-m", "hpcmoe", "run", "job.toml", "--set", "generate.max_new_tokens=3"],
                           cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return tmp_path


def test_the_h5py_script_reads_results(demo):
    script, = re.findall(r"```python\n(.*?)```", README, re.S)
    assert len(script.strip().splitlines()) <= 11
    ended = subprocess.run([sys.executable, "-c", script], cwd=demo, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert "1 ranks" in ended.stdout and "a length" in ended.stdout and "busiest expert" in ended.stdout


def test_its_verbs_and_options_are_there():
    """Every `hpcmoe VERB --option` in the README's code blocks and tables."""
    found = {*re.findall(r"`(\w[^`\n]*)` \|", README), *re.findall(r"bin/hpcmoe (\w+ [^#\n]*)", README)}
    verbs = set(cli.commands)
    assert verbs == {words.split()[0] for words in found} & verbs, "a verb that the README does not name"
    calls = [shlex.split(words.replace("`", " ").replace("'", "")) for words in found if words.split()[0] in verbs]
    assert len(calls) > 5
    for verb, *rest in calls:
        sub = [verb, rest[0]] if verb == "bench" and rest else [verb]
        shown = subprocess.run([sys.executable, "-m", "hpcmoe", *sub, "--help"], capture_output=True, text=True)
        page = shown.stdout
        assert shown.returncode == 0, shown.stderr
        for option in (word for word in rest if word.startswith("--")):
            assert option in page, f"hpcmoe {verb} has no {option}"
