"""The page that `check` prints."""

import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from rich.table import Table

from hpcmoe import array, config, spec, tables
from hpcmoe.config import Job
from hpcmoe.engine import inputs, output
from hpcmoe.engine.memory import Memory, Sizes, place, plan_memory, plan_sizes
from hpcmoe.errors import JobError
from hpcmoe.report import text
from hpcmoe.spec import ModelSpec

CPU_WEIGHT = 4
"""Bytes of a weight on a CPU, whatever the dtype: see `array`."""
SHORT = 1024
"""Tokens of the sequence that a spec without a job is shown with."""
SIZE = re.compile(r"(\d+|\d*\.\d+) *([kmgtp]?)(i?)b?")
"""A number and a unit: with an i in powers of 1024, else of 1000."""


def check(path: Path, overrides: Iterable[str], ranks: int, gpu_memory: str | None) -> None:
    """Checks a job, or shows what a spec needs. Raises what is wrong with it."""
    limit = None if gpu_memory is None else parse_size(gpu_memory)
    out = text.console()
    if is_spec(path):
        model, job = spec.load(path), Job(str(path), prompts="", output="")
        sizes = Sizes(1, 1, min(model.context, SHORT))
        out.print(f"{path}: a spec without a job, shown with one sequence of {sizes.length} tokens")
    else:
        job = config.load(path, overrides)
        found = inputs.read(job)
        model = found.model.spec
        lengths = found.prompts.lengths
        sizes = plan_sizes(model, job, lengths, ranks)
        left = output.look(job, found.identity(job))
        out.print(f"{path}: nothing wrong was found\n  model    {job.model} ({model.name})\n"
                  f"  prompts  {len(lengths)}, {lengths.min()} to {lengths.max()} tokens\n"
                  f"  output   {job.output}, {left.words()}")
    memory = _memory(model, job, sizes, ranks, limit is not None)
    out.print(_layout(model, sizes, ranks))
    where = "on a CPU, where weights are float32" if limit is None else job.compute.dtype
    out.print(f"Memory of the fullest rank, {where}:")
    out.print(_table(memory))
    if limit is not None:
        verdict(memory, limit, gpu_memory or "", place(model, ranks).most)
        out.print(f"It fits: {text.size(memory.total)} of {gpu_memory}.")


def is_spec(path: Path) -> bool:
    """Whether a TOML file is a model's spec and not a job."""
    table = tables.read(path, JobError, "job file")
    return "layers" in table and "model" not in table


def parse_size(words: str) -> float:
    """ "80GB" or "80g" -> 80e9 bytes, "80GiB" -> 80 * 2**30. Raises `JobError`."""
    match = SIZE.fullmatch(words.strip().lower())
    if match is None:
        raise JobError(f"--gpu-memory {words}: should be a size such as 80GB or 79GiB")
    power = " kmgtp".index(match[2] or " ")
    return float(match[1]) * (1024 if match[3] else 1000) ** power


def _memory(model: ModelSpec, job: Job, sizes: Sizes, ranks: int, gpu: bool) -> Memory:
    value = array.DTYPES[job.compute.dtype].itemsize
    return plan_memory(model, job, place(model, ranks), sizes, value if gpu else CPU_WEIGHT, value)


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
    if memory.requests:
        grid.add_row("persistent requests, staged pieces, at most", text.size(memory.requests))
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
