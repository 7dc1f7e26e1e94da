"""The page that `check` prints."""

import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from rich.table import Table

from hpcmoe import array, config, spec, tables
from hpcmoe.config import Checkpoint, Compute, Exchange, Generate, Job, Schedule
from hpcmoe.engine import inputs
from hpcmoe.engine import job as life
from hpcmoe.engine.memory import Memory, Sizes, place, plan_memory, plan_sizes
from hpcmoe.errors import JobError
from hpcmoe.report import text
from hpcmoe.spec import ModelSpec

CPU_WEIGHT = 4
"""Bytes of a weight on a CPU, whatever the dtype: see `array`."""
SHORT = 1024
"""Tokens of the sequence that a spec without a job is shown with."""
SCALES = {"": 1, "B": 1} | {f"{p}B": 1000 ** n for n, p in enumerate("kMGT", 1)} | {
    f"{p}iB": 1024 ** n for n, p in enumerate("KMGT", 1)}


def check(path: Path, overrides: Iterable[str], ranks: int, gpu_memory: str | None) -> None:
    """Checks a job, or shows what a spec needs. Raises what is wrong with it."""
    limit = parse_size(gpu_memory) if gpu_memory else None
    out = text.console()
    if is_spec(path):
        model, job = spec.load(path), bare_job(path)
        sizes = Sizes(1, 1, min(model.context, SHORT))
        out.print(f"{path}: a spec without a job, shown with one sequence of {sizes.length} tokens")
    else:
        job = config.load(path, overrides)
        found = inputs.read(job)
        model = found.model.spec
        lengths = found.prompts.lengths
        sizes = plan_sizes(model, job, lengths, ranks)
        state = life.output_state(Path(job.output), found.identity(job))
        out.print(f"{path}: nothing wrong was found\n  model    {job.model} ({model.name})\n"
                  f"  prompts  {len(lengths)}, {lengths.min()} to {lengths.max()} tokens\n"
                  f"  output   {job.output}, {state}")
    memory = _memory(model, job, sizes, ranks, limit is not None)
    out.print(_layout(model, sizes, ranks))
    out.print(f"Memory of the fullest rank, {job.compute.dtype if limit else 'on a CPU, where weights are float32'}:")
    out.print(_table(memory))
    if limit is not None:
        verdict(memory, limit, gpu_memory or "", place(model, ranks).most)
        out.print(f"It fits: {text.size(memory.total)} of {gpu_memory}.")


def is_spec(path: Path) -> bool:
    """Whether a TOML file is a model's spec and not a job."""
    table = tables.read(path, JobError, "job file")
    return "layers" in table and "model" not in table


def bare_job(path: Path) -> Job:
    """A job for a spec alone, all defaults."""
    return Job(str(path), "", "", "generate", Generate(), Compute(), Exchange(), Schedule(), Checkpoint())


def parse_size(words: str) -> float:
    """ "80GB" -> 80e9 bytes. Raises `JobError`."""
    match = re.fullmatch(r"\s*([0-9.]+)\s*([A-Za-z]*)\s*", words)
    scale = SCALES.get(match[2]) if match else None
    try:
        assert match and scale
        return float(match[1]) * scale
    except (AssertionError, ValueError):
        raise JobError(f"--gpu-memory {words}: should be a size such as 80GB or 79GiB") from None


def _memory(model: ModelSpec, job: Job, sizes: Sizes, ranks: int, gpu: bool) -> Memory:
    value = array.DTYPES[job.compute.dtype].itemsize
    return plan_memory(model, place(model, ranks), sizes, value if gpu else CPU_WEIGHT, value)


def _layout(model: ModelSpec, sizes: Sizes, ranks: int) -> str:
    work = f"up to {text.plural(sizes.sequences, 'sequence')} and {text.plural(sizes.tokens, 'token')} a step on each"
    if not model.moe:
        return f"{text.plural(ranks, 'rank')}, a dense model, {work}"
    held = np.diff(place(model, ranks).first)
    spare = int((held == 0).sum())
    slots = f"{text.plural(int(held.max()), 'expert')} per rank and layer{f', {spare} ranks without' if spare else ''}"
    return f"{text.plural(ranks, 'rank')}, E = {model.experts}: {slots}; {work}"


def _table(memory: Memory) -> Table:
    grid = text.table("what", ">size")
    for part, count in memory.weights.items():
        grid.add_row(f"weights, {part}", text.size(count))
    grid.add_row("keys and values", text.size(memory.cache))
    grid.add_row("exchange buffers, balanced routing", text.size(memory.exchange))
    grid.add_row("total", text.size(memory.total))
    return grid


def verdict(memory: Memory, limit: float, words: str, slots: int) -> None:
    """Raises `JobError` where `memory` is more than `limit` bytes, and says what would help.

    `slots` is the number of experts per rank and layer.
    """
    if memory.total <= limit:
        return
    weights, experts = sum(memory.weights.values()), memory.weights.get("experts", 0)
    if weights <= limit:
        hint = "fewer or shorter sequences (schedule.max_sequences, generate.max_new_tokens) need less"
    elif slots > 1 and weights - experts + experts / slots <= limit:
        hint = f"the weights are {text.size(weights)}, and more ranks hold fewer experts each"
    else:
        part = max(memory.weights, key=lambda name: memory.weights[name])
        hint = (f"the weights alone are {text.size(weights)}, and more ranks do not help: "
                f"each holds all of the {part}, {text.size(memory.weights[part])}")
    raise JobError(f"GPUs of {words} do not hold it: {text.size(memory.total)} per rank are needed; {hint}")
