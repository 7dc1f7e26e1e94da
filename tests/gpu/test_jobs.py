"""Whole jobs of a real model on GPUs: the same answers as on a CPU, and at any number of ranks."""

from pathlib import Path

import h5py
import numpy as np
import pytest
import smollm2
from launched import mpiexec

from hpcmoe.files import prompts

pytestmark = pytest.mark.gpu
KINDS = ("copies", "slices")
ENOUGH = 7
"""Of 8 prompts: 64 greedy tokens may part where two logits are as good as equal."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Upcycled models, and the prompts."""
    made = tmp_path_factory.mktemp("smollm2")
    smollm2.upcycle(made, KINDS, "bfloat16")
    return made


@pytest.fixture(scope="module")
def answer(folder):
    """Tokens and log-probabilities of the 8 prompts, computed once for each way to do it."""
    known: dict[tuple, list] = {}

    def answers(kind: str, device: str, ranks: int, reproducible: bool = False) -> list:
        key = kind, device, ranks, reproducible
        if key not in known:
            output = folder / f"{'-'.join(map(str, key))}.h5"
            ended = mpiexec(ranks, "-m", "hpcmoe", "run", str(folder / f"{kind}.toml"), "-o", str(output), "--set",
                            f"compute.device={device}", "--set", f"compute.reproducible={str(reproducible).lower()}")
            assert ended.returncode == 0, ended.stderr
            with h5py.File(output) as file:
                ends = file["tokens/offsets"][1:-1]
                known[key] = list(zip(np.split(file["tokens/data"][:], ends), np.split(file["logprobs/data"][:], ends)))
        return known[key]
    return answers


def same(some: list, others: list) -> int:
    """Prompts whose tokens are."""
    assert len(some) == len(others) == 8
    found = sum(np.array_equal(tokens, there) for (tokens, _), (there, _) in zip(some, others))
    print(f"{found} of 8 are the same")
    return found


@pytest.fixture(scope="module")
def scores(folder, answer):
    """Log-probabilities of a CPU's answers behind their prompts, `[N]`, computed once for each way to do it."""
    def score(kind: str, device: str, dtype: str = "bfloat16") -> np.ndarray:
        asked, path = prompts.read(folder / "prompts.h5"), folder / f"{kind}-answered.h5"
        new = [tokens for tokens, _ in answer(kind, "cpu", 1)]
        if not path.exists():  # a second one would be another job's
            prompts.write(path, list(asked.ids), [np.concatenate([asked[n], tokens]) for n, tokens in enumerate(new)])
        output = folder / f"{kind}-{device}-{dtype}-scored.h5"
        settings = ("mode=score", f"prompts={path}", f"compute.device={device}", f"compute.dtype={dtype}")
        ended = mpiexec(1, "-m", "hpcmoe", "run", str(folder / f"{kind}.toml"), "-o", str(output),
                        *(word for setting in settings for word in ("--set", setting)))
        assert ended.returncode == 0, ended.stderr
        with h5py.File(output) as file:
            all_ = np.split(file["logprobs/data"][:], file["tokens/offsets"][1:-1])
        return np.concatenate([logprobs[-len(tokens):] for logprobs, tokens in zip(all_, new)])
    return score


@pytest.mark.parametrize("kind", KINDS)
def test_a_gpu_rounds_no_worse_than_a_cpu(answer, scores, kind):
    """Each against float32, for the same tokens. Greedy answers part where bfloat16 decides: on one CPU too, where a
    prompt has other neighbours in its step (docs/design.md, "Measured")."""
    exact = scores(kind, "cpu", "float32")
    errors = {device: float(np.sqrt(np.mean((scores(kind, device) - exact) ** 2))) for device in ("cpu", "gpu")}
    apart = float(np.sqrt(np.mean((scores(kind, "gpu") - scores(kind, "cpu")) ** 2)))
    print(f"{kind}: log-probabilities differ from float32's by {errors['cpu']:.4f} on the CPU, {errors['gpu']:.4f} on "
          f"the GPU, from each other by {apart:.4f} (root mean square)")
    same(answer(kind, "gpu", 1), answer(kind, "cpu", 1))
    assert errors["gpu"] <= 1.1 * errors["cpu"]


@pytest.mark.parametrize("ranks", [4, 16])
@pytest.mark.parametrize("kind", KINDS)
def test_tokens_are_the_same_on_many_ranks(answer, kind, ranks):
    assert same(answer(kind, "gpu", ranks), answer(kind, "gpu", 1)) >= ENOUGH


@pytest.mark.parametrize("kind", KINDS)
def test_reproducible_bits_are_the_same_on_many_ranks(answer, kind):
    for (tokens, logprobs), (there, others) in zip(answer(kind, "gpu", 16, True), answer(kind, "gpu", 1, True)):
        assert np.array_equal(tokens, there) and logprobs.tobytes() == others.tobytes()
