"""Jobs whose choice of experts is steered by a bias, and what their results say of it."""

from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from models import TINY

from hpcmoe import config, launch, tables
from hpcmoe.engine import job as life
from hpcmoe.files import prompts, results
from hpcmoe.spec import ModelSpec

pytestmark = pytest.mark.mpi
MODELS = {"softmax": replace(TINY, moe=replace(TINY.moe, experts=8)),
          "sigmoid": replace(TINY, moe=replace(TINY.moe, score="sigmoid", selection_bias=True, groups=3,
                                               groups_kept=2))}


def run(comm, folder: Path, model: ModelSpec, *more: str) -> results.Results:
    """What a job comes to, in which all ranks have sequences all the time."""
    world, path = launch.start(), folder / "bias.toml"
    if comm.rank == 0:
        (folder / "biased.toml").write_text(tables.dump(model))
        rng = np.random.default_rng(4)
        lists = [rng.integers(0, model.vocabulary, 1 + n % 5).astype(np.int32) for n in range(4 * comm.size)]
        prompts.write(folder / "b.h5", [str(n) for n in range(len(lists))], lists)
        path.write_text('model = "biased.toml"\nprompts = "b.h5"\noutput = "biased.h5"\n')
    launch.meet(comm)
    job = config.load(path, ("schedule.max_sequences=4", "compute.dtype=float32", "generate.max_new_tokens=40",
                             "generate.ignore_eos=true", "generate.temperature=1.0", "exchange.mode=alltoallv", *more))
    assert life.run(world, job, overwrite=True)[0] is life.End.DONE
    launch.meet(comm)
    with h5py.File(job.output) as file:
        return results.read(file, Path(job.output))


def tokens(found: results.Results) -> list[list[int]]:
    """Of all answers."""
    return [answer.tokens.tolist() for answer in found.answers]


@pytest.mark.many_ranks("sigmoid")
@pytest.mark.parametrize("name", MODELS)
def test_load_is_evened_and_what_it_costs_is_told(comm, shared_tmp, everywhere, name):
    plain = run(comm, shared_tmp, MODELS[name])
    still = run(comm, shared_tmp, MODELS[name], "balance.mode=bias", "balance.rate=0")
    steered = run(comm, shared_tmp, MODELS[name], "balance.mode=bias", "balance.rate=0.01")
    problems = [] if tokens(plain) == tokens(still) else ["a bias of 0 changes answers"]
    if plain.bias or not still.bias or still.bias.moved.any() or len(set(still.bias.nats)) > 1:
        problems.append(f"a bias of 0: {still.bias}, and none: {plain.bias}")
    bias = steered.bias
    if not bias or bias.moved[0] or not bias.moved[1:].all() or (bias.moved > steered.load.sum(axis=1)).any():
        problems.append(f"{bias} of {steered.load.sum(axis=1)}")
    uneven = [found.load[1:].max(axis=1).sum() / found.load[1:].mean(axis=1).sum() for found in (plain, steered)]
    if not uneven[1] < uneven[0]:
        problems.append(f"busiest over mean {uneven}")
    with h5py.File(shared_tmp / "b.h5") as file:
        known = int(np.diff(file["tokens/offsets"]).sum()) - 4 * comm.size
    if bias and (bias.tokens != known or not bias.perplexity[0] > 1 or bias.nats[0] == bias.nats[1]):
        problems.append(f"{bias.tokens} scored of {known}: {bias.perplexity}")
    everywhere(problems)
