"""Whole jobs on real ranks, from prompts.h5 to results.h5, against the slow oracle."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import h5py
import numpy as np
import pytest
from after import After
from models import TINY, VARIANTS
from mpi4py import MPI

from hpcmoe import config, launch, reference, tables
from hpcmoe.engine import inputs
from hpcmoe.engine import job as life
from hpcmoe.files import begun, parts, prompts, results
from hpcmoe.files.drawn import Drawn
from hpcmoe.kernels import rows

pytestmark = pytest.mark.mpi
LENGTHS = (1, 9, 3, 17, 1, 30, 2, 2, 5, 12, 1)
NEW = 6


@pytest.fixture(scope="module")
def folder(comm, shared_tmp) -> Path:
    """Prompts and specs of tiny models, the same files for all ranks."""
    if comm.rank == 0:
        rng = np.random.default_rng(1)
        lists = [rng.integers(0, TINY.vocabulary, n).astype(np.int32) for n in LENGTHS]
        prompts.write(shared_tmp / "prompts.h5", [f"p{i}" for i in range(len(lists))], lists)
        for name, spec in VARIANTS.items():
            (shared_tmp / f"{name}.toml").write_text(tables.dump(replace(spec, eos=(5, 60))))
    launch.meet(comm)
    return shared_tmp


def job(folder: Path, name: str, output: str, *overrides: str) -> config.Job:
    """A job on the tiny model `name`, small enough to need chunks of prompts and refilled slots."""
    path = folder / "job.toml"
    settings = (f"model='{folder / name}.toml'", f"output='{folder / output}'", "schedule.max_sequences=2",
                "schedule.max_tokens=7", f"generate.max_new_tokens={NEW}", "compute.dtype=float32",
                "exchange.mode=alltoallv")
    if not path.exists():
        path.write_text('model = "m"\nprompts = "prompts.h5"\noutput = "o"\n')
    return config.load(path, settings + overrides)


def run(comm, folder: Path, name: str, output: str, *overrides: str) -> tuple[config.Job, life.End]:
    """Runs a job on all ranks."""
    world = launch.start()
    chosen = launch.on_root(world, lambda: job(folder, name, output, *overrides))
    return chosen, life.run(world, chosen, overwrite=False)[0]


@cache
def wanted(folder: Path, name: str) -> list[list[int]]:
    """What the oracle answers to each prompt."""
    found = prompts.read(folder / "prompts.h5")
    model = Drawn(replace(VARIANTS[name], eos=(5, 60)), 0)
    weights = reference.reader(model)
    return [reference.generate(model.spec, weights, found[i], NEW) for i in range(len(found))]


@pytest.mark.many_ranks("tiny-1-1", "one expert-1-1", "sinks and biases-2-4")
@pytest.mark.parametrize("name, shards, team", [
    ("tiny", 1, 1), ("all experts", 1, 1), ("one expert", 1, 1), ("no experts", 1, 1), ("latent", 1, 1),
    ("sinks and biases", 1, 1), ("tiny", 2, 1), ("no experts", 2, 2), ("latent", 1, 2), ("sinks and biases", 2, 4)])
def test_the_answers_are_those_of_the_oracle(comm, folder, everywhere, name, shards, team):
    if comm.size % shards or comm.size % team:
        pytest.skip(f"{comm.size} ranks are no groups of {shards}, or no teams of {team}")
    made, _ = run(comm, folder, name, f"{name}-{shards}-{team}.h5", f"parallel.expert_tensor={shards}",
                  f"parallel.attention_tensor={team}", "exchange.mode=auto")
    problems = []
    if comm.rank == 0:
        got = results.answers(Path(made.output))
        for i, (answer, want) in enumerate(zip(got, wanted(folder, name))):
            stop = "eos" if want[-1] in (5, 60) else "length"
            if answer.prompt != i or answer.tokens.tolist() != want or answer.stop != stop:
                problems.append(f"prompt {i}: {answer} instead of {want}, {stop}")
    everywhere(problems)


WAYS = [("serial", "alltoallv"), ("serial", "persistent"), ("overlapped", "alltoallv"), ("overlapped", "persistent")]


@pytest.mark.many_ranks("tiny")
@pytest.mark.parametrize("name", ["tiny", "shared", "sigmoid groups", "no experts"])
def test_schedules_and_modes_give_equal_bits(comm, folder, everywhere, name):
    """At one number of ranks and micro-batches: tokens, log-probabilities and loads."""
    found = []
    for schedule, mode in WAYS:
        made, _ = run(comm, folder, name, f"{name}-{schedule}-{mode}.h5", f"schedule.mode={schedule}",
                      f"exchange.mode={mode}", "schedule.micro_batches=2", "schedule.max_sequences=4")
        if comm.rank == 0:
            with h5py.File(made.output) as file:
                found.append([file[key][:].tobytes() for key in ("tokens/data", "logprobs/data", "load")])
    everywhere([f"{way} differs from {WAYS[0]}" for way, got in zip(WAYS, found) if got != found[0]])


@pytest.mark.many_ranks("tiny-float32", "latent-bfloat16")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["tiny", "attention extras", "sigmoid groups", "window", "latent"])
def test_reproducible_jobs_have_equal_bits_at_any_number_of_ranks(comm, folder, everywhere, name, dtype):
    """On all ranks, scheduled and exchanged in several ways, and on rank 0 alone in steps of another size."""
    settings = ("compute.reproducible=true", f"compute.dtype={dtype}", "generate.temperature=1.0")
    world = replace(launch.start(), comm=MPI.COMM_SELF, size=1, rank=0, nodes=(0,))
    found = []
    for schedule, mode in WAYS[:1] + WAYS[3:]:
        made, _ = run(comm, folder, name, f"{name}-{dtype}-{schedule}-{mode}-r.h5", *settings,
                      f"schedule.mode={schedule}", f"exchange.mode={mode}")
        found.append(made.output)
    if comm.rank == 0:
        alone = job(folder, name, f"{name}-{dtype}-alone-r.h5", *settings, "schedule.max_sequences=5",
                    "schedule.max_tokens=50")
        life.run(world, alone, overwrite=False)
        found.append(alone.output)
        bits = [[(t, np.array(p, np.float32).tobytes()) for t, p in read(path)] for path in found]
    rows.compute_alone(False)
    everywhere([] if comm.rank or bits.count(bits[0]) == len(bits) else ["other bits"])


def test_the_file_tells_what_happened(comm, folder, everywhere):
    made, end = run(comm, folder, "tiny", "told.h5")
    problems = [] if end is life.End.DONE else [f"{end}"]
    if comm.rank == 0:
        with h5py.File(made.output) as file:
            generated = np.diff(file["tokens/offsets"]).sum()
            computed = sum(LENGTHS) + generated - len(LENGTHS)
            moe = TINY.moe
            checks = {
                "load": file["load"][:].sum(axis=1).tolist() == [0] + [computed * moe.top_k] * 3,
                "computed": file["timings/tokens"][:].sum() == computed,
                "chosen": file["timings/chosen"][:].sum() == generated,
                "logprobs": (file["logprobs/data"][:] <= 0).all() and len(file["logprobs/data"]) == generated,
                "ids": [i.decode() for i in file["id"]] == [f"p{i}" for i in range(len(LENGTHS))],
                "job": config.tables.parse(file.attrs["job"])["schedule"]["max_sequences"] == 2,
                "ranks": file.attrs["ranks"] == comm.size and len(file["host"]) == comm.size,
                "versions": "numpy" in file.attrs["versions"] and "MPI" in file.attrs["versions"].upper(),
                "stages": (file["timings/mean"][:].sum(axis=1) <= file["timings/wall"][:] * 1.001).all(),
                "parts are gone": not parts.folder(Path(made.output)).exists(),
            }
            problems = [name for name, right in checks.items() if not right]
    everywhere(problems)


def test_a_finished_job_is_left_alone(comm, folder, everywhere):
    run(comm, folder, "tiny", "whole.h5")
    before = (folder / "whole.h5").stat().st_mtime_ns
    launch.meet(comm)
    _, end = run(comm, folder, "tiny", "whole.h5")
    launch.meet(comm)
    same = end is life.End.NOTHING_TO_DO and (folder / "whole.h5").stat().st_mtime_ns == before
    everywhere([] if same else ["it ran again"])


def test_an_unfinished_job_goes_on_where_it_stopped(comm, folder, everywhere):
    first, _ = run(comm, folder, "tiny", "whole.h5")
    world = launch.start()
    second = launch.on_root(world, lambda: job(folder, "tiny", "resumed.h5", "checkpoint.every=0"))
    if comm.rank == 0:  # what a job that died after three answers leaves
        found = inputs.read(second)
        origin = parts.Provenance(second.toml(), found.identity(second), "", 1, ("host",), 1)
        three = tuple(a for a in results.answers(Path(first.output)) if a.prompt in (0, 4, 10))
        parts.write(Path(second.output), 0, 0, 0, parts.Part(three, np.zeros((4, 6), np.int64), ()), origin)
    launch.meet(comm)
    life.run(world, second, overwrite=False)
    problems = []
    if comm.rank == 0:
        whole, resumed = (results.answers(Path(j.output)) for j in (first, second))
        if [(a.prompt, a.tokens.tolist()) for a in whole] != [(a.prompt, a.tokens.tolist()) for a in resumed]:
            problems.append("other answers")
        with h5py.File(second.output) as file:
            done = sum(len(a.tokens) for a in whole if a.prompt in (0, 4, 10))
            if file["timings/chosen"][:].sum() != sum(len(a.tokens) for a in whole) - done:
                problems.append("answered prompts were computed again")
            if set(file["timings/attempt"][:]) != {1}:
                problems.append(f"attempts {file['timings/attempt'][:]}")
    everywhere(problems)


@pytest.mark.many_ranks("generate")
@pytest.mark.parametrize("mode", ["generate", "score"])
def test_a_job_that_is_told_to_end_goes_on_and_comes_to_the_same_bits(comm, folder, everywhere, mode):
    """Again and again, on all ranks and then on rank 0 alone, in other steps and ways."""
    settings = (f"mode={mode}", "compute.reproducible=true", "generate.temperature=1.0")
    whole, _ = run(comm, folder, "tiny", f"undisturbed-{mode}.h5", *settings)
    alone = replace(launch.start(), comm=MPI.COMM_SELF, size=1, rank=0, nodes=(0,))
    ends, saved = [], 0
    for steps, slots, (schedule, exchange) in zip((3, 2, 4, 1), (2, 1, 3, 2), WAYS):
        ways = (f"schedule.mode={schedule}", f"exchange.mode={exchange}", f"schedule.max_sequences={slots}")
        again = comm.bcast(job(folder, "tiny", f"disturbed-{mode}.h5", *settings, *ways) if comm.rank == 0 else None)
        told = After(steps if comm.rank == comm.size - 1 else 10**6)
        ends.append(life.run(launch.start(), again, overwrite=False, notice=told)[0])
        saved += len(begun.files(Path(again.output)))
        launch.meet(comm)
    problems = [] if life.End.CHECKPOINTED in ends and (saved or mode == "score") else [f"{ends}, {saved} files"]
    if comm.rank == 0:
        life.run(alone, again, overwrite=False)
        bits = [[(t, np.array(p, np.float32).tobytes()) for t, p in read(made.output)] for made in (whole, again)]
        problems += ["other bits"] if bits[0] != bits[1] else []
        problems += [f"left: {path}" for path in folder.glob(f"disturbed-{mode}.h5?*")]
    rows.compute_alone(False)
    everywhere(problems)


def read(output: str) -> list[tuple[list[int], list[float]]]:
    """Tokens and log-probabilities of each prompt."""
    return [(a.tokens.tolist(), a.logprobs.tolist()) for a in results.answers(Path(output))]


def test_the_same_sample_at_any_number_of_ranks(comm, folder, everywhere):
    """On all ranks together, and on rank 0 alone."""
    settings = ("generate.temperature=0.9", "generate.top_p=0.95", "generate.seed=11")
    made, _ = run(comm, folder, "tiny", "sampled.h5", *settings)
    world = replace(launch.start(), comm=MPI.COMM_SELF, size=1, rank=0, nodes=(0,))
    problems = []
    if comm.rank == 0:
        alone = job(folder, "tiny", "sampled-alone.h5", *settings)
        life.run(world, alone, overwrite=False)
        if [t for t, _ in read(made.output)] != [t for t, _ in read(alone.output)]:
            problems.append("other tokens on one rank")
        if [t for t, _ in read(made.output)] == wanted(folder, "tiny"):
            problems.append("nothing was drawn")
    everywhere(problems)


def test_scores_are_those_of_the_oracle(comm, folder, everywhere):
    made, _ = run(comm, folder, "tiny", "scored.h5", "mode=score")
    problems = []
    if comm.rank == 0:
        found, model = prompts.read(folder / "prompts.h5"), Drawn(replace(TINY, eos=(5, 60)), 0)
        weights = reference.reader(model)
        for i, (tokens, logprobs) in enumerate(read(made.output)):
            logits = reference.logits(model.spec, weights, found[i])[:-1]
            p = np.log(np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True))
            want = p[np.arange(len(logits)), found[i][1:]]
            close = np.isnan(logprobs[0]) and np.allclose(logprobs[1:], want, atol=1e-4)
            if tokens != found[i].tolist() or not close:
                problems.append(f"prompt {i}: {logprobs} instead of {want}")
    everywhere(problems)
