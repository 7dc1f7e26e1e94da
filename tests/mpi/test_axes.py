"""Families of models as whole jobs, cut along every axis: the answers are transformers'."""

from pathlib import Path

import numpy as np
import pytest
from rig import GOLDENS, golden

from hpcmoe import config, launch
from hpcmoe.convert.huggingface import HuggingFaceCheckpoint
from hpcmoe.engine import job as life
from hpcmoe.files import model, prompts, results

pytestmark = pytest.mark.mpi
FAMILIES = ("mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "deepseek_v2", "deepseek_v2_lite", "deepseek_v3",
            "deepseek_v3_fp8", "deepseek_v3_yarn", "glm4_moe", "gpt_oss", "gpt_oss_mxfp4", "gpt_oss_yarn")
AXES = ("data", "expert_tensor", "attention_tensor")
EACH = [(2, 1, 1), (1, 2, 1), (1, 1, 2), (2, 2, 2)]


@pytest.fixture(scope="module")
def folder(comm, shared_tmp) -> Path:
    """Model and prompts of each family, the same files for all ranks; those of the answers' log-probabilities, too."""
    if comm.rank == 0:
        for family in FAMILIES:
            model.write(shared_tmp / f"{family}.h5", HuggingFaceCheckpoint(GOLDENS / family), "float32")
            lists = golden(family)[1]
            prompts.write(shared_tmp / f"{family}-prompts.h5", [f"p{i}" for i in range(len(lists))], lists)
    launch.meet(comm)
    return shared_tmp


def check(comm, folder: Path, family: str, cuts: tuple[int, int, int]) -> list[str]:
    """What is wrong with a job's answers."""
    if comm.size % np.prod(cuts[:2]) or comm.size // cuts[0] % cuts[2]:
        pytest.skip(f"{comm.size} ranks cannot be cut so")
    if family == "olmoe" and cuts[2] > 1:
        pytest.skip("its queries are normed all together")
    found, lists = golden(family)
    world, name = launch.start(), f"{family}-{'-'.join(map(str, cuts))}"

    def job() -> config.Job:
        path = folder / f"{name}.toml"
        path.write_text(f'model = "{family}.h5"\nprompts = "{family}-prompts.h5"\noutput = "{name}-out.h5"\n')
        given = [f"parallel.{axis}={cut}" for axis, cut in zip(AXES, cuts)]
        return config.load(path, (*given, "compute.dtype=float32", "generate.max_new_tokens=12",
                                  "generate.ignore_eos=true", "schedule.max_sequences=3", "schedule.max_tokens=20"))
    made = launch.on_root(world, job)
    life.run(world, made, overwrite=False)
    problems = []
    for i, answer in enumerate(results.answers(Path(made.output)) if comm.rank == 0 else ()):
        logits = found[f"logits32_{i}"][len(lists[i]) - 1:-1].astype(np.float64)
        want = found[f"tokens_{i}"]
        logprobs = logits[np.arange(12), want] - np.log(np.exp(logits).sum(axis=1))
        if answer.tokens.tolist() != want.tolist():
            problems.append(f"{name}, prompt {i}: {answer.tokens.tolist()} instead of {want.tolist()}")
        elif (off := np.abs(answer.logprobs - logprobs).max()) > 1e-4:
            problems.append(f"{name}, prompt {i}: log-probabilities are {off:.1e} apart")
    return problems


@pytest.mark.many_ranks("gpt_oss")
@pytest.mark.parametrize("family", ["olmoe", "deepseek_v3", "gpt_oss"])
def test_all_axes_at_once(comm, folder, everywhere, family):
    everywhere(check(comm, folder, family, (2, 2, 1 if family == "olmoe" else 2)))


@pytest.mark.slow
@pytest.mark.parametrize("cuts", EACH, ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_each_axis(comm, folder, everywhere, family, cuts):
    everywhere(check(comm, folder, family, cuts))
