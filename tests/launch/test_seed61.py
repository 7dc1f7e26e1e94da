"""The seed's own shapes, with two of its 61 layers: one dense, one with 16 experts."""

import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from launched import mpiexec

ROOT = Path(__file__).parents[2]


def hpcmoe(*arguments: str) -> subprocess.CompletedProcess:
    """Runs a verb in one process."""
    return subprocess.run([sys.executable, "-m", "hpcmoe", *arguments], capture_output=True, text=True, timeout=300)


def test_check_gives_the_memory_of_all_61_layers_and_refuses_64_gb():
    spec = str(ROOT / "inputs" / "seed61.toml")
    refused, fits = (hpcmoe("check", spec, "--ranks", "16", "--gpu-memory", size) for size in ("64GB", "80GB"))
    assert refused.returncode == 2 and "GPUs of 64GB do not hold it" in refused.stderr
    assert "the weights are 64.1 GB, 57.3 GB of them of attention: parallel.attention_tensor = 2" in refused.stderr
    assert fits.returncode == 0 and "It fits" in fits.stdout and "5.1 GB" in fits.stdout


@pytest.mark.slow
@pytest.mark.parametrize("drawn", [False, True], ids=["from a file", "drawn"])
def test_init_and_a_job_on_two_layers(tmp_path, drawn):
    text = (ROOT / "inputs" / "seed61.toml").read_text()
    spec = tmp_path / "seed2.toml"
    spec.write_text(text.replace("layers = 61", "layers = 2").replace("layers = 3", "layers = 1"))
    model = tmp_path / "seed2.h5"
    if not drawn:
        made = hpcmoe("init", str(spec), "-o", str(model))
        assert made.returncode == 0 and 4.6e9 < model.stat().st_size < 4.8e9, made.stderr
    made = hpcmoe("prompts", str(ROOT / "inputs" / "seed61.jsonl"), "-o", str(tmp_path / "p.h5"), "--model", str(spec))
    assert made.returncode == 0, made.stderr
    job = tmp_path / "job.toml"
    job.write_text(f'model = "{(spec if drawn else model).name}"\nprompts = "p.h5"\noutput = "out.h5"\n'
                   "[generate]\nmax_new_tokens = 3\nignore_eos = true\n")
    ended = mpiexec(2, "-m", "hpcmoe", "run", str(job), seconds=600)
    assert ended.returncode == 0, ended.stderr
    with h5py.File(tmp_path / "out.h5") as file:
        assert np.diff(file["tokens/offsets"]).tolist() == [3, 3, 3, 3]
        assert file["load"].shape == (2, 16) and file["load"][1].sum() == 2 * (24 + 4 * 3 - 4)
