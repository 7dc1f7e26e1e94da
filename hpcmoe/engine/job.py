"""A job from beginning to end, on every rank."""

import os
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from enum import Enum
from pathlib import Path

import numpy as np

from hpcmoe import gpu
from hpcmoe.config import Job
from hpcmoe.engine import start
from hpcmoe.engine.crew import Crew
from hpcmoe.engine.fit import plan_rank, planned
from hpcmoe.engine.generate import Stop
from hpcmoe.engine.inputs import Inputs
from hpcmoe.engine.memory import room
from hpcmoe.engine.start import Plan
from hpcmoe.engine.trace import Untraced, open_trace
from hpcmoe.engine.versions import versions
from hpcmoe.errors import JobError
from hpcmoe.files import begun, results
from hpcmoe.files.lock import Held
from hpcmoe.files.parts import Provenance
from hpcmoe.files.tokenizer import Tokenizer
from hpcmoe.files.trace import beside
from hpcmoe.launch import Agreed, World, meet, on_root
from hpcmoe.notice import TIME, Notice, slurm_seconds, words
from hpcmoe.slots import most


class End(Enum):
    """How a run of a job ended."""

    DONE = "all prompts are answered"
    NOTHING_TO_DO = "they were before"
    CHECKPOINTED = "it was told to end before; all is committed, and another run goes on"


def run(world: World, job: Job, overwrite: bool, traced: bool = False,
        notice: Notice | None = None) -> tuple[End, World]:
    """Answers the job's prompts, and writes a trace of it beside the output where `traced`; with how it ended, the
    world of the ranks that lived to see it. Collective.

    Raises `Agreed` with the failures of `config`, `inputs` and `files`.
    """
    with ExitStack() as locked:
        plan = on_root(world, lambda: start.plan(world, job, overwrite, traced, locked))
        if plan.left.finished:
            return End.NOTHING_TO_DO, world
        return _run(world, job, plan, traced, notice or Notice(), locked)


def _run(world: World, job: Job, plan: Plan, traced: bool, notice: Notice, locked: ExitStack) -> tuple[End, World]:
    if world.rank == 0:
        _limit(notice, job)
    origin = Provenance(job.toml(), plan.inputs.identity(job), versions(world.library), world.size, world.hosts,
                        most(plan.placements), job.parallel.data)
    waiting = np.setdiff1d(plan.inputs.rows, plan.left.done)
    recorded = open_trace(world.size) if traced else Untraced()
    on_root(world, lambda: begun.settle(Path(job.output), plan.left.attempt, plan.left.begun, origin))
    stop, held = None, plan.held
    if len(waiting):
        world, stop, held = _answer(world, job, plan, waiting, origin, recorded, notice, locked)
    meet(world.comm)  # every part is on disk
    if not stop:
        on_root(world, lambda: _pack(job, plan, held, origin))
    recorded.write(world, beside(Path(job.output)))  # behind the results, which a full disk must not cost
    if not stop:
        return End.DONE, world
    if stop.reason == TIME and not stop.steps:  # another run would come no further
        raise Agreed(JobError.code, f"{time.monotonic() - notice.begun:.0f} s passed before the first step, and with "
                     "them the job's time: give checkpoint.walltime, or the batch job, more", world.rank == 0)
    if world.rank == 0:
        count = len(plan.inputs.rows)
        print(f"hpcmoe: rank {stop.rank}: {words(stop.reason)}; checkpointed: {count - stop.waiting - stop.begun} of "
              f"{count} prompts are answered, {stop.begun} are under way; the same command goes on",
              file=sys.stderr, flush=True)
    return End.CHECKPOINTED, world


def _pack(job: Job, plan: Plan, held: Held, origin: Provenance) -> None:
    held.check()
    results.pack(Path(job.output), plan.inputs.prompts, origin, _decoder(plan.inputs), plan.inputs.rows)


def _limit(notice: Notice, job: Job) -> None:
    """How long the job may take, as it says itself or Slurm does: rank 0 has notice for all."""
    left = None if job.checkpoint.walltime else slurm_seconds(os.environ)
    if job.checkpoint.walltime:
        notice.limit(job.checkpoint.walltime, notice.begun)
    elif left is not None:
        notice.limit(left, time.monotonic())


def _answer(world: World, job: Job, plan: Plan, waiting: np.ndarray, origin: Provenance, recorded: Untraced,
            notice: Notice, locked: ExitStack) -> tuple[World, Stop | None, Held]:
    """Who is left, why they stopped, and who has the lock."""
    model, lengths = plan.inputs.model.spec, plan.inputs.prompts.lengths[waiting]
    sizes, memory = plan_rank(world, model, job, lengths, room(job, plan.placements), gpu.free_memory)
    with planned(memory):
        crew = Crew(world, job, plan, waiting, sizes, memory, origin, recorded, locked)
        stop = crew.answer(notice)
        return crew.whole, stop, crew.held


def _decoder(found: Inputs) -> Callable[[np.ndarray], str]:
    if found.model.tokenizer:
        try:
            return Tokenizer(found.model.tokenizer).decode
        except JobError as error:
            print(f"hpcmoe: warning: texts are left empty: {error}", file=sys.stderr)
    return lambda tokens: ""
