"""Jobs on a GPU whose experts move between ranks, or whose choice of experts is steered."""

from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from launched import answers, mpiexec
from models import TINY

from hpcmoe import tables
from hpcmoe.files import prompts, results
from hpcmoe.spec import Attention

pytestmark = pytest.mark.gpu
COUNT = 96
MODEL = replace(TINY, hidden=512, attention=Attention(8, 8, 64),
                moe=replace(TINY.moe, experts=8, hidden=256, score="sigmoid", selection_bias=True))


@pytest.fixture
def job(tmp_path) -> Path:
    """For a GPU; not reproducible yet."""
    (tmp_path / "spec.toml").write_text(tables.dump(MODEL))
    prompts.write(tmp_path / "p.h5", [str(n) for n in range(COUNT)],
                  [np.arange(n % 7, n % 7 + 2 + n % 5, dtype=np.int32) for n in range(COUNT)])
    path = tmp_path / "job.toml"
    path.write_text('model = "spec.toml"\nprompts = "p.h5"\noutput = "out.h5"\n[compute]\ndevice = "gpu"\n[generate]\n'
                    "max_new_tokens = 48\nignore_eos = true\ntemperature = 1.0\n[schedule]\nmax_sequences = 4\n")
    return path


def run(job: Path, ranks: int, output: str, *settings: str) -> tuple[Path, str]:
    """Its output, and what it said."""
    ended = mpiexec(ranks, "-m", "hpcmoe", "run", str(job), "-o", str(job.with_name(output)),
                    *(word for setting in settings for word in ("--set", setting)))
    assert ended.returncode == 0, ended.stderr
    return job.with_name(output), ended.stderr


@pytest.mark.parametrize("ranks", [3, 12])
def test_answers_have_the_same_bits_while_experts_move(job, ranks):
    same = "compute.reproducible=true", "balance.mode=replicas"
    still, _ = run(job, ranks, "still.h5", *same)
    moving, said = run(job, ranks, "moving.h5", *same, "balance.replan_every=3")
    assert "get other experts" in said, said
    assert answers(still, COUNT) == answers(moving, COUNT)
    before, after = (results.routing(path).computed[1:] for path in (still, moving))
    assert (after.max(axis=1) < before.max(axis=1)).all()


def test_a_bias_evens_the_load_and_its_cost_is_told(job):
    found = []
    for rate in (0, 0.005):
        output, _ = run(job, 4, f"{rate}.h5", "balance.mode=bias", f"balance.rate={rate}")
        with h5py.File(output) as file:
            found.append(results.read(file, output))
    still, steered = found
    assert not still.bias.moved.any() and steered.bias.moved[1:].all() and not steered.bias.moved[0]
    assert still.bias.tokens == steered.bias.tokens > 0 and still.bias.nats[0] == still.bias.nats[1]
    assert np.isclose(steered.bias.perplexity[1], still.bias.perplexity[1], rtol=1e-2)
    uneven = [one.load[1:].max(axis=1) / one.load[1:].mean(axis=1) for one in found]
    print("busiest over mean", *uneven, "perplexity", steered.bias.perplexity)
    assert (uneven[1] < uneven[0]).all()
