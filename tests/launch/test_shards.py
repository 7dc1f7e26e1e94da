"""A job in shards, packed, is the job as a whole."""

import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from launched import mpiexec
from models import TINY

from hpcmoe import tables
from hpcmoe.files import prompts

SHARDS = 3


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A job that draws its answers."""
    (tmp_path / "spec.toml").write_text(tables.dump(TINY))
    lists = [np.arange(1 + 5 * n % 23, dtype=np.int32) for n in range(11)]
    prompts.write(tmp_path / "p.h5", [f"id {n}" for n in range(11)], lists)
    (tmp_path / "job.toml").write_text(
        'model = "spec.toml"\nprompts = "p.h5"\noutput = "out.h5"\n'
        '[generate]\nmax_new_tokens = 6\ntemperature = 0.9\nseed = 3\n'
        '[compute]\ndtype = "float32"\nreproducible = true\n')
    return tmp_path


def hpcmoe(folder: Path, *words: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "hpcmoe", *words], cwd=folder, capture_output=True, text=True,
                          timeout=100)


def test_packed_shards_have_the_bits_of_the_whole(folder):
    ended = mpiexec(2, "-m", "hpcmoe", "run", str(folder / "job.toml"), "-o", str(folder / "whole.h5"))
    assert ended.returncode == 0, ended.stderr
    for number in range(SHARDS):
        ended = hpcmoe(folder, "run", "job.toml", "--set", f"shard={number}/{SHARDS}")
        assert ended.returncode == 0, ended.stderr
    names = [f"out.{number}-of-{SHARDS}.h5" for number in range(SHARDS)]
    ended = hpcmoe(folder, "pack", *names, "-o", "out.h5")
    assert ended.returncode == 0, ended.stderr
    with h5py.File(folder / "whole.h5") as one, h5py.File(folder / "out.h5") as other:
        for name in ("prompt", "id", "stop", "tokens/data", "tokens/offsets", "logprobs/data", "load"):
            np.testing.assert_array_equal(one[name][:], other[name][:], err_msg=name)
        assert set(one) == set(other)
    again = hpcmoe(folder, "run", "job.toml")
    assert again.returncode == 0 and "finished already" in again.stdout, again.stderr
