"""Many prompts: memory does not grow with how many are done, and the output is complete."""

import time
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from launched import Running
from models import TINY

from hpcmoe import tables
from hpcmoe.files import prompts

RANKS, PROMPTS = 16, 100_000
GROWTH = 0.05
"""Of the memory of all ranks together, from the first 5 % of the prompts to the last commit before the results."""


@pytest.mark.slow
def test_the_memory_of_100000_prompts_is_flat_and_all_are_answered(tmp_path: Path):
    (tmp_path / "spec.toml").write_text(tables.dump(replace(TINY, layers=2)))
    rng = np.random.default_rng(1)
    lists = [rng.integers(0, TINY.vocabulary, n).astype(np.int32) for n in rng.integers(1, 6, PROMPTS)]
    prompts.write(tmp_path / "p.h5", [str(n) for n in range(PROMPTS)], lists)
    job = tmp_path / "job.toml"
    job.write_text('model = "spec.toml"\nprompts = "p.h5"\noutput = "out.h5"\n[generate]\nmax_new_tokens = 2\n'
                   'ignore_eos = true\n[schedule]\nmax_sequences = 32\n[checkpoint]\nevery = 5\n')
    running = Running(RANKS, job)
    pids, seen = running.ranks(120), []
    while running.process.poll() is None:
        done = len(list(tmp_path.glob("out.h5.parts/[0-9]*"))), sum(resident(pid) for pid in pids)
        if done[0]:
            seen.append(done)
        time.sleep(1)
    assert running.wait(1) == 0, running.said
    with h5py.File(tmp_path / "out.h5") as file:
        assert file["prompt"][:].tolist() == list(range(PROMPTS))
        assert len(file["tokens/data"]) == 2 * PROMPTS
    last = max(count for count, _ in seen)
    steady = [size for count, size in seen if count > 0.05 * last]
    steps = steady[:steady.index(max(steady)) + 1] if len(steady) < 3 else steady[:-2]  # then rank 0 packs
    print(f"{RANKS} ranks: {steps[0] / 1e6:.0f} MB behind the first 5 %, {max(steps) / 1e6:.0f} MB at most")
    assert max(steps) < (1 + GROWTH) * steps[0], [f"{size / 1e6:.0f}" for size in steps]


def resident(pid: int) -> int:
    """Bytes of a process in memory; 0 where it is gone."""
    try:
        return 4096 * int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except OSError:
        return 0
