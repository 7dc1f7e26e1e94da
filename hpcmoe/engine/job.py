"""A job from beginning to end, on every rank."""

import os
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import numpy as np

from hpcmoe import array, gpu, paths
from hpcmoe.config import Job
from hpcmoe.engine import device, inputs, output
from hpcmoe.engine.batch import Sequences
from hpcmoe.engine.fit import plan_rank, planned
from hpcmoe.engine.generate import Stop, Vote, generate
from hpcmoe.engine.inputs import Inputs
from hpcmoe.engine.memory import Memory, Sizes, place
from hpcmoe.engine.output import Left
from hpcmoe.engine.pool import Pool
from hpcmoe.engine.progress import open_progress
from hpcmoe.engine.record import Record
from hpcmoe.engine.trace import Untraced, open_trace
from hpcmoe.engine.versions import compare, versions
from hpcmoe.engine.ways import choose_turns, choose_way, read_probe
from hpcmoe.errors import JobError
from hpcmoe.exchange.watch import Watch
from hpcmoe.files import begun, lock, results, vet
from hpcmoe.files.lock import Held
from hpcmoe.files.parts import Provenance
from hpcmoe.files.probe import Probe
from hpcmoe.files.tokenizer import Tokenizer
from hpcmoe.files.trace import beside
from hpcmoe.kernels.rows import compute_alone
from hpcmoe.launch import Agreed, World, meet, on_root, together
from hpcmoe.notice import TIME, Notice, slurm_seconds, words
from hpcmoe.types import Placement


class End(Enum):
    """How a run of a job ended."""

    DONE = "all prompts are answered"
    NOTHING_TO_DO = "they were before"
    CHECKPOINTED = "it was told to end before; all is committed, and another run goes on"


@dataclass(frozen=True)
class Plan:
    """What rank 0 found and decided; the same on all ranks."""

    inputs: Inputs
    left: Left
    probe: Probe | None
    held: Held


def run(world: World, job: Job, overwrite: bool, traced: bool = False, notice: Notice | None = None) -> End:
    """Answers the job's prompts, and writes a trace of it beside the output where `traced`. Collective.

    Raises `Agreed` with the failures of `config`, `inputs` and `files`.
    """
    with ExitStack() as locked:
        plan = on_root(world, lambda: _plan(world, job, overwrite, traced, locked))
        return End.NOTHING_TO_DO if plan.left.finished else _run(world, job, plan, traced, notice or Notice())


def _run(world: World, job: Job, plan: Plan, traced: bool, notice: Notice) -> End:
    if world.rank == 0:
        _limit(notice, job)
    placement = place(plan.inputs.model.spec, world.size)
    origin = Provenance(job.toml(), plan.inputs.identity(job), versions(world.library), world.size, world.hosts,
                        placement.most)
    waiting = np.setdiff1d(plan.inputs.rows, plan.left.done)
    recorded = open_trace(world.size) if traced else Untraced()
    on_root(world, lambda: begun.settle(Path(job.output), plan.left.attempt, plan.left.begun, origin))
    stop = _answer(world, job, plan, waiting, placement, origin, recorded, notice) if len(waiting) else None
    meet(world)  # every part is on disk
    if not stop:
        on_root(world, lambda: _pack(job, plan, origin))
    recorded.write(world, beside(Path(job.output)))  # behind the results, which a full disk must not cost
    if not stop:
        return End.DONE
    if stop.reason == TIME and not stop.steps:  # another run would come no further
        raise Agreed(JobError.code, f"{time.monotonic() - notice.begun:.0f} s passed before the first step, and with "
                     "them the job's time: give checkpoint.walltime, or the batch job, more", 0)
    if world.rank == 0:
        print(f"hpcmoe: rank {stop.rank}: {words(stop.reason)}; checkpointed: {len(plan.left.done) + stop.finished} of "
              f"{len(plan.inputs.rows)} prompts are answered, {stop.begun} are under way; the same command goes on",
              file=sys.stderr, flush=True)
    return End.CHECKPOINTED


def _pack(job: Job, plan: Plan, origin: Provenance) -> None:
    plan.held.check()
    results.pack(Path(job.output), plan.inputs.prompts, origin, _decoder(plan.inputs), plan.inputs.rows)


def _limit(notice: Notice, job: Job) -> None:
    """How long the job may take, as it says itself or Slurm does: rank 0 has notice for all."""
    left = None if job.checkpoint.walltime else slurm_seconds(os.environ)
    if job.checkpoint.walltime:
        notice.limit(job.checkpoint.walltime, notice.begun)
    elif left is not None:
        notice.limit(left, time.monotonic())


def _plan(world: World, job: Job, overwrite: bool, traced: bool, locked: ExitStack) -> Plan:
    found = inputs.read(job)
    held = locked.enter_context(lock.taken(output.check_place(job)))
    if traced:
        paths.check_output(beside(Path(job.output)), Path(job.model), Path(job.prompts))
    if overwrite:
        output.clear(job)
    left = output.look(job, found.identity(job), found.model.spec.vocabulary)
    output.tidy(job, left)
    for line in left.warnings() + (compare(left.versions) if job.compute.reproducible else []):
        print(f"hpcmoe: warning: {line}", file=sys.stderr, flush=True)
    plan = Plan(found, left, read_probe(job, found.model.spec, world.size, world.library), held)
    vet.end()  # from here on what was looked through is read
    return plan


def _answer(world: World, job: Job, plan: Plan, waiting: np.ndarray, placement: Placement, origin: Provenance,
            recorded: Untraced, notice: Notice) -> Stop | None:
    model, lengths = plan.inputs.model.spec, plan.inputs.prompts.lengths[waiting]
    pool = Pool(plan.inputs.prompts, waiting.tolist(), plan.left.begun)
    sizes, memory = plan_rank(world, model, job, lengths, placement, gpu.free_memory)
    with planned(memory):
        return _compute(world, job, plan, pool, placement, sizes, memory, origin, recorded, notice)


def _compute(world: World, job: Job, plan: Plan, pool: Pool, placement: Placement, sizes: Sizes,
             memory: Memory, origin: Provenance, recorded: Untraced, notice: Notice) -> Stop | None:
    model, dtype = plan.inputs.model, array.DTYPES[job.compute.dtype]
    load = planned(memory)(device.load)  # all ranks come to its end, so what is wrong is told once
    held = together(world, lambda: load(model, lambda layer: placement.held_by(world.rank), dtype, world.memory))
    compute_alone(job.compute.reproducible)
    way, turns = choose_way(world, job, model.spec, plan.probe), choose_turns(job, plan.probe)
    watch = Watch(world.comm, world.idle, job.exchange.timeout, world.hosts)
    vote = Vote(world.comm, watch)
    segments = together(world, lambda: device.open_segments(
        world.comm, watch, model.spec, held, placement, sizes, job.generate, dtype, way, turns.most,
        overlapped=turns.overlapped, nodes=world.nodes, trace=recorded))
    sequences = Sequences(model.spec, job, sizes.sequences, sizes.tokens)
    record = Record(Path(job.output), plan.left.attempt, world.rank, origin, job.checkpoint.every,
                    (model.spec.layers, model.spec.experts), plan.held.check)
    progress = open_progress(world.rank, len(pool))
    recorded.align(world.comm, watch.idle)
    stop = generate(vote, world.rank, pool, sequences, segments, turns, record, progress, notice)
    recorded.align(world.comm, watch.idle)
    progress.close()
    together(world, lambda: record.commit(sequences.begun()))
    vote.free()
    segments.free()
    watch.free()
    return stop


def _decoder(found: Inputs) -> Callable[[np.ndarray], str]:
    if found.model.tokenizer:
        try:
            return Tokenizer(found.model.tokenizer).decode
        except JobError as error:
            print(f"hpcmoe: warning: texts are left empty: {error}", file=sys.stderr)
    return lambda tokens: ""
