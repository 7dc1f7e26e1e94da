"""The page that `check` prints."""

import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from rich.table import Table

from hpcmoe import config, spec_table, tables, ulfm
from hpcmoe.config import Job
from hpcmoe.engine import inputs, output
from hpcmoe.engine.fit import Fit, advice, fit, largest
from hpcmoe.engine.memory import MOST_TOKENS, Memory, Sizes, plan_memory, plan_sizes, room
from hpcmoe.engine.seats import group_size, place
from hpcmoe.errors import JobError
from hpcmoe.files import lock
from hpcmoe.report import text
from hpcmoe.slots import Placements
from hpcmoe.slots import most as most_slots
from hpcmoe.spec import ModelSpec

MANY = 1 << 20
"""Sequences that are tried with a spec at most."""
SHORT = 1024
"""Tokens of the sequence that a spec without a job is shown with."""
SIZE = re.compile(r"(\d+|\d*\.\d+) *([kmgtp]?)(i?)b?")
"""A number and a unit: with an i in powers of 1024, else of 1000."""


def check(path: Path, overrides: Iterable[str], ranks: int, gpu_memory: str | None) -> None:
    """Checks a job, or shows what a spec needs. Raises what is wrong with it."""
    limit = None if gpu_memory is None else parse_size(gpu_memory)
    out = text.console()
    if is_spec(path):
        model = spec_table.load(path)
        job = config.build({"model": str(path), "prompts": "", "output": ""}, overrides, path)
        placements = place(model, ranks, job)
        found = _fit_alone(model, job, placements, limit)
        out.print(f"{path}: a spec without a job, shown with one sequence of {found.sizes.length} tokens")
        more = f"{text.plural(found.most, 'sequence')} of {found.sizes.length} tokens"
    else:
        job = config.load(path, overrides)
        read = inputs.read(job)
        model, lengths = read.model.spec, read.prompts.lengths[read.rows]
        placements = place(model, group_size(ranks, job), job)
        found = _fit(model, job, lengths, room(job, placements), limit)
        left = output.look(job, read.identity(job), model.vocabulary)
        out.print(f"{path}: nothing wrong was found\n  model    {job.model} ({model.name})\n"
                  f"  prompts  {len(lengths)}, {lengths.min()} to {lengths.max()} tokens\n"
                  f"  output   {job.output}, {left.words()}")
        for line in left.warnings():
            out.print(f"  warning  {line}")
        if words := _lock(Path(job.output)):
            out.print(f"  lock     {words}")
        if job.checkpoint.on_failure == "shrink":
            out.print(f"  shrink   start it with {ulfm.HOW}, not with srun; on GPUs with exchange.transport = staged; "
                      "the plan below has room for the experts of one lost rank")
        more = f"schedule.max_sequences = {found.most}"
    out.print(_layout(model, found.sizes, placements, job.parallel.data))
    where = "on a CPU, where weights are float32" if limit is None else "on its GPU, bfloat16"
    out.print(f"Memory of the fullest rank, {where}:")
    out.print(_table(found.memory))
    if limit is not None:
        verdict(found, limit, gpu_memory or "", most_slots(placements))
        out.print(f"It fits: {text.size(found.memory.total)} of {gpu_memory}; the largest batch that does is {more}.")


def _lock(output: Path) -> str:
    """Who holds the output, in words; "" where nobody does."""
    path = lock.beside(output)
    try:
        holder = lock.read(path)
    except OSError as error:
        return f"{path} cannot be read ({error.strerror or error}): a run would end at once"
    if not holder:
        return ""
    return f"of {holder}" + (", which is gone: a run takes it over" if lock.lives(holder) is False else "")


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


def _fit(model: ModelSpec, job: Job, lengths: np.ndarray, placements: Placements, limit: float | None) -> Fit:
    """The plan of a job; without a limit, on a CPU."""
    if limit is None:
        sizes = plan_sizes(model, job, lengths, placements[0].ranks)
        return Fit(sizes, plan_memory(model, job, placements, sizes, "host"), 0)
    if job.compute.dtype == "float32":
        raise JobError("--gpu-memory: compute.dtype = float32 is computed on CPUs: set bfloat16, or leave it out")
    return fit(model, job, lengths, placements, limit)


def _fit_alone(model: ModelSpec, job: Job, placements: Placements, limit: float | None) -> Fit:
    """The plan of one sequence; a step has all tokens of some prompts, or one of each sequence."""
    length = min(model.context, SHORT)

    def plan(sequences: int) -> Memory:
        sizes = Sizes(sequences, max(sequences, min(MOST_TOKENS, sequences * length)), length)
        return plan_memory(model, job, placements, sizes, "host" if limit is None else "device")
    most = 0 if limit is None else largest(plan, limit, MANY)
    return Fit(Sizes(1, min(MOST_TOKENS, length), length), plan(1), most)


def _layout(model: ModelSpec, sizes: Sizes, placements: Placements, groups: int) -> str:
    shards, layers = placements[0].shards, [placements[layer].grouped for layer in model.moe_layers]
    ranks = text.plural(placements[0].ranks, "rank")
    ranks = f"{groups} independent groups of {ranks}" if groups > 1 else ranks
    work = f"up to {text.plural(sizes.sequences, 'sequence')} and {text.plural(sizes.tokens, 'token')} a step on each"
    if not model.moe:
        return f"{ranks}, a dense model, {work}"
    spare = int((np.sum([np.diff(layer.first) for layer in layers], axis=0) == 0).sum())
    copies = max(int(layer.copies.max()) for layer in layers)
    slots = (f"{text.plural(most_slots(layers), 'expert')} per rank and layer"
             f"{f', 1 of {shards} shards of each' if shards > 1 else ''}"
             f"{f', {spare * shards} ranks without' if spare else ''}"
             f"{f', up to {copies} replicas of one' if copies > 1 else ''}")
    return f"{ranks}, E = {model.experts}: {slots}; {work}"


def _table(memory: Memory) -> Table:
    grid = text.table("what", ">size")
    for part, count in memory.weights.items():
        grid.add_row(f"weights, {part}", text.size(count))
    grid.add_row("keys and values", text.size(memory.cache))
    grid.add_row("exchange buffers, balanced routing", text.size(memory.exchange))
    if memory.requests:
        pieces = "" if memory.workspace else ", staged pieces"
        grid.add_row(f"persistent requests{pieces}, at most", text.size(memory.requests))
    if memory.workspace:
        grid.add_row("workspace of a step, kernels", text.size(memory.workspace))
    grid.add_row("total", text.size(memory.total))
    if memory.staged:
        grid.add_row("beside it, in the host's memory: staged pieces, at most", text.size(memory.staged))
    return grid


def verdict(found: Fit, limit: float, words: str, slots: int) -> None:
    """Raises `JobError` where the plan is more than `limit` bytes, and says what would help; `slots` as in `advice`."""
    if found.memory.total > limit:
        raise JobError(f"GPUs of {words} do not hold it: {text.size(found.memory.total)} per rank are needed; "
                       f"{advice(found.memory, limit, found.most, slots)}")
