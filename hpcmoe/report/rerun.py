"""The steps of a run again, under a simulated clock: as many tokens as they had, and experts as busy as they were.

A step says how many tokens T it computed on all ranks, and how many, C, it chose. Where T = C each sequence got one
token; else f prompts of p tokens, the mean of all, ended in it, T - C = f (p - 1), or parts of longer ones. Tokens are
taken to be spread evenly over the ranks, and to be behind as many others as on average over the run.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from hpcmoe import array, config
from hpcmoe.config import Job, Schedule
from hpcmoe.engine.memory import MOST_TOKENS
from hpcmoe.errors import InputError
from hpcmoe.files.results import StepTable
from hpcmoe.predict import demand
from hpcmoe.predict.layout import Layout, Load
from hpcmoe.predict.machine import Hardware
from hpcmoe.predict.predict import settled
from hpcmoe.predict.simulate import Given, Step, batch_of, simulate
from hpcmoe.report import bins
from hpcmoe.report.measured import Measured, model
from hpcmoe.spec import ModelSpec
from hpcmoe.traffic import Traffic
from hpcmoe.types import Batch

MOST_ROWS, MOST_PARTS = 1 << 17, 256
"""Tokens of a rank, and micro-batches, of a step that is simulated, at most: files may come from anybody."""
KINDS = 8
"""Sizes of steps that are simulated, of those with prompts and of those without; others count as the nearest."""


@dataclass(frozen=True)
class Lengths:
    """Of a run's sequences, on average."""

    prompt: float
    """tokens of a prompt"""
    behind: float
    """tokens behind which a new one is computed"""


@dataclass(frozen=True)
class Kind:
    """Steps of about one size."""

    rows: np.ndarray
    """`[n]` int64: which they are"""
    alone: bool
    """whether each sequence got one token"""
    tokens: float
    """of all ranks, mean"""
    chosen: float


class Part(NamedTuple):
    """What a rank has in a step."""

    sequences: int
    """with one token each"""
    prompts: int = 0
    rows: int = 0
    """tokens of these"""
    logits: int = 0
    """of prompts that are scored"""


@dataclass(frozen=True)
class Rerun:
    """A run beside its simulation."""

    kinds: tuple[Kind, ...]
    steps: StepTable
    """as `Measured.steps`: those of a kind all alike; the slowest rank counts as the mean in `max`"""
    layout: Layout


def rerun(run: Measured, hw: Hardware) -> Rerun:
    """The run's own job on `hw`. Raises `InputError` where the file does not tell enough, or names what is not there by
    now, `JobError` where its job cannot be."""
    spec, job = model(run), config.build(dict(run.job), (), run.path)
    _check(run, job)
    found, of, group = kinds(run.steps, run.scored), lengths(run), run.ranks // run.groups
    hw = replace(hw, device=replace(hw.device, value=array.DTYPES[job.compute.dtype].itemsize))
    given = _given(run, spec)
    layout = _laid_out(run, job, spec, hw, given, found, of)
    shares = [each(kind, group, run.scored, of) for kind in found]
    asked = list(dict.fromkeys(one for share in shares for one, _ in share))
    batches = [batch(spec, one, run.scored, of) for one in asked]
    done = dict(zip(asked, simulate(spec, hw, layout, given, batches).steps))
    table = _none(run.steps)
    for kind, share in zip(found, shares):
        for one, part in share:
            _add(table, kind.rows, done[one], part, group)
    return Rerun(tuple(found), replace(table, max=table.mean), layout)


def _check(run: Measured, job: Job) -> None:
    """Raises `InputError` where the steps cannot be simulated."""
    if run.shards > 1:
        raise InputError(f"{run.path} was packed from {run.shards} shards, whose steps are those of other ranks each")
    if len(run.hosts) != run.ranks:
        raise InputError(f"{run.path} names {len(run.hosts)} hosts of {run.ranks} ranks")
    rows, parts = int(run.steps.tokens.max(initial=0)) * run.groups // run.ranks, job.schedule.micro_batches
    if rows > MOST_ROWS or parts > MOST_PARTS:
        raise InputError(f"{run.path} has steps of {rows:,} tokens on a rank in up to {parts:,} micro-batches: more "
                         f"than {MOST_ROWS:,} or {MOST_PARTS} are not simulated")


def lengths(run: Measured) -> Lengths:
    """All computed tokens are those of prompts, or new ones but the last of each answer."""
    count, computed = max(len(run.lengths), 1), int(run.steps.tokens.sum())
    if run.scored:
        return Lengths(computed / count, 0.0)
    prompt = max(1.0, (computed - int(run.steps.chosen.sum())) / count + 1)
    later = np.maximum(run.lengths - 1, 0).astype(np.float64)
    return Lengths(prompt, prompt + float((later * (later - 1)).sum() / 2 / max(later.sum(), 1.0)))


def kinds(steps: StepTable, scored: bool) -> list[Kind]:
    """Steps by size, `KINDS` of each sort at most."""
    found, alone = [], (steps.tokens == steps.chosen) & (not scored)
    for sort in (True, False):
        mine = np.flatnonzero(alone == sort)
        sizes, size = np.unique(steps.tokens[mine], return_inverse=True)
        group = np.searchsorted(bins.groups(len(sizes), KINDS), size, "right")
        for number in np.unique(group).tolist():
            rows = mine[group == number]
            found.append(Kind(rows, sort, float(steps.tokens[rows].mean()), float(steps.chosen[rows].mean())))
    return found


def each(kind: Kind, ranks: int, scored: bool, of: Lengths) -> list[tuple[Part, float]]:
    """What each of so many ranks has in such a step, and how much of the step counts as that: where sequences do not
    come out even, it is between two numbers of them."""
    if kind.alone:
        least, more = divmod(kind.tokens / ranks, 1)
        return [(Part(int(least) + n), share) for n, share in enumerate((1 - more, more)) if share]
    ended = kind.tokens - kind.chosen  # of a prompt that is scored all tokens but one
    if not scored:
        ended = min(ended / max(of.prompt - 1, 1e-9), kind.chosen)
    others = 0.0 if scored else kind.chosen - ended
    rows = max(1, round((kind.tokens - others) / ranks))
    prompts = min(rows, max(1, round(ended / ranks)))
    return [(Part(round(others / ranks), prompts, rows, min(rows, round(kind.chosen / ranks)) if scored else 0), 1.0)]


def batch(spec: ModelSpec, part: Part, scored: bool, of: Lengths) -> Batch:
    """The same as a micro-batch."""
    behind, longest = min(round(of.behind), spec.context - 1), spec.context
    pieces = [min(len(some), longest) for some in np.array_split(np.arange(part.rows), part.prompts or 1) if len(some)]
    found = batch_of(spec, [(1, behind)] * part.sequences + [(piece, 0) for piece in pieces])
    if scored:
        none = np.zeros(part.logits, np.int64)
        found = replace(found, wanted=np.arange(part.logits, dtype=np.int32), prompt=none, target=none.astype(np.int32))
    return found


def _given(run: Measured, spec: ModelSpec) -> Given:
    if not spec.moe:
        return Given(demand.NONE)
    if run.routing is None:
        raise InputError(f"{run.path} does not tell where its tokens went")
    return Given(demand.traced(run.routing, spec.moe, spec.moe_layers, str(run.path)))


def _laid_out(run: Measured, job: Job, spec: ModelSpec, hw: Hardware, given: Given, found: Sequence[Kind],
              of: Lengths) -> Layout:
    """As the run was, with what `auto` comes to: without a probe steps are not cut."""
    per_node = job.parallel.ranks_per_node or max(Counter(run.hosts).values())
    schedule = Schedule("serial", 1) if job.schedule.mode == "auto" and not job.probe else job.schedule
    layout = Layout(run.ranks, replace(job, schedule=schedule,
                                       parallel=replace(job.parallel, ranks_per_node=per_node, data=run.groups)))
    most = max((kind.tokens for kind in found if kind.alone), default=1.0)
    sequences = max(1, round(most / layout.group))
    return settled(spec, hw, layout, Load(sequences, round(of.prompt), 1, max(MOST_TOKENS, sequences)), given)


def _none(steps: StepTable) -> StepTable:
    """The same steps, which take no time yet."""
    return replace(steps, wall=np.zeros(len(steps.wall)), mean=np.zeros_like(steps.mean),
                   traffic=Traffic.none(len(steps.wall)))


def _add(table: StepTable, rows: np.ndarray, step: Step, part: float, ranks: int) -> None:
    """Takes up a simulated step for those in `rows`."""
    table.wall[rows] += part * step.seconds
    table.mean[rows] += part * step.stages
    moved = table.traffic
    moved.seconds[rows] += part * step.traffic.seconds
    moved.exposed[rows] += part * step.traffic.exposed
    moved.bytes[rows] += np.rint(part * ranks * step.traffic.bytes).astype(np.int64)
