"""A real model: SmolLM2 upcycled, against what transformers answers for the same GGUF file."""

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import smollm2
from launched import mpiexec
from rig import GOLDENS

from hpcmoe.engine.inputs import open_model
from hpcmoe.engine.seats import place
from hpcmoe.files import prompts
from hpcmoe.model import weights
from hpcmoe.slots import held_by

pytestmark = pytest.mark.large


@pytest.fixture(scope="module")
def golden() -> dict:
    return json.loads((GOLDENS / "smollm2.json").read_text())


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Upcycled models of 16 experts, and the prompts."""
    made = tmp_path_factory.mktemp("smollm2")
    smollm2.upcycle(made, ("copies", "slices"), "float32")
    return made


def test_prompts_are_tokenised_as_by_transformers(folder, golden):
    found = prompts.read(folder / "prompts.h5")
    assert [found[i].tolist() for i in range(len(found))] == [p["prompt_ids"] for p in golden["prompts"]]


def test_copies_take_no_space(folder):
    assert (folder / "copies.h5").stat().st_size < 1.1 * (folder / "slices.h5").stat().st_size


PEAK = """
import atexit, resource, sys
folder = sys.argv.pop()
def write():
    from mpi4py import MPI
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    open(f"{folder}/{MPI.COMM_WORLD.rank}.peak", "w").write(str(peak))
atexit.register(write)
from hpcmoe.__main__ import main
main()
"""
"""The command line, with a note of each rank's peak memory at its end."""


@pytest.mark.parametrize(("kind", "ranks", "most"), [
    ("copies", 4, 64), ("slices", 16, 16),
    *(pytest.param(*more, 64, marks=pytest.mark.slow) for more in (("slices", 4), ("copies", 16), ("slices", 16)))])
def test_64_greedy_tokens_of_8_prompts_are_those_of_transformers(folder, golden, kind, ranks, most):
    """Each kind, and each number of ranks, once; both of both, and all tokens of each, in make test-long."""
    output = folder / f"{kind}-{ranks}-{most}.h5"
    peaks = output.with_suffix("")
    peaks.mkdir()
    ended = mpiexec(ranks, "-c", PEAK, "run", str(folder / f"{kind}.toml"), "-o", str(output),
                    "--set", f"generate.max_new_tokens={most}", str(peaks))
    assert ended.returncode == 0, ended.stderr
    with h5py.File(output) as file:
        tokens = np.split(file["tokens/data"][:], file["tokens/offsets"][1:-1])
        logprobs = np.split(file["logprobs/data"][:], file["tokens/offsets"][1:-1])
        text = [t.decode() for t in file["text"]]
    assert [t.tolist() for t in tokens] == [p["tokens"][:most] for p in golden["prompts"]]
    for got, want in zip(logprobs, golden["prompts"]):
        assert np.allclose(got, want["logprobs"][:most], atol=2e-4)
    assert "capital of France is Paris" in " ".join(text)
    check_memory(folder / f"{kind}.h5", ranks, peaks)


def check_memory(model: Path, ranks: int, peaks: Path) -> None:
    """A rank holds its own experts and the shared parts only: peak RSS below 1.3 times those bytes + 250 MB."""
    spec = open_model(model).spec
    for rank in range(ranks):
        held = held_by(place(spec, ranks), rank)
        own = sum(weights.size(spec, held, lambda tensor: 4 * tensor.values).values())
        peak = int((peaks / f"{rank}.peak").read_text())
        print(f"rank {rank} of {ranks}: {peak / 1e6:.0f} MB, {own / 1e6:.0f} MB of weights")
        assert peak < 1.3 * own + 250e6


def test_the_perplexity_of_a_licence_is_that_of_transformers(folder, golden, tmp_path):
    """2,224 tokens, in steps of 512, by the dense model; and by 16 slices of it on 4 ranks."""
    want = golden["perplexity"]["ids"]
    ids = np.array(want["ids"], np.int32)
    prompts.write(tmp_path / "licence.h5", ["first 1024", "all"], [ids[:1024], ids])
    (tmp_path / "job.toml").write_text(f'model = "{folder}/slices.h5"\nprompts = "licence.h5"\noutput = "out.h5"\n'
                                       'mode = "score"\n[compute]\ndtype = "float32"\n[schedule]\nmax_tokens = 512\n')
    ended = mpiexec(4, "-m", "hpcmoe", "run", str(tmp_path / "job.toml"))
    assert ended.returncode == 0, ended.stderr
    with h5py.File(tmp_path / "out.h5") as file:
        first, whole = np.split(file["logprobs/data"][:], file["tokens/offsets"][1:-1])
    for got, name in ((first, "first_1024"), (whole, "all")):
        perplexity = np.exp(-got[1:].mean(dtype=np.float64))
        print(f"{name}: {perplexity:.6f}, transformers {want[name]['perplexity']:.6f}")
        assert abs(perplexity / want[name]["perplexity"] - 1) < 1e-4
