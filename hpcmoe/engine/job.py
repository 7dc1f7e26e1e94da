"""A job from beginning to end, on every rank."""

import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from hpcmoe import __version__, array, gpu, paths
from hpcmoe.config import Job
from hpcmoe.engine import device, inputs, output
from hpcmoe.engine.batch import Sequences
from hpcmoe.engine.fit import plan_rank, planned
from hpcmoe.engine.generate import Vote, generate
from hpcmoe.engine.inputs import Inputs
from hpcmoe.engine.memory import Memory, Sizes, place
from hpcmoe.engine.output import Left
from hpcmoe.engine.progress import open_progress
from hpcmoe.engine.record import Record
from hpcmoe.engine.trace import Untraced, open_trace
from hpcmoe.engine.ways import choose_turns, choose_way, read_probe
from hpcmoe.errors import JobError
from hpcmoe.exchange.watch import Watch
from hpcmoe.files import results, vet
from hpcmoe.files.parts import Provenance
from hpcmoe.files.probe import Probe
from hpcmoe.files.tokenizer import Tokenizer
from hpcmoe.files.trace import beside
from hpcmoe.kernels.rows import compute_alone
from hpcmoe.launch import World, on_root, together
from hpcmoe.types import Placement


@dataclass(frozen=True)
class Plan:
    """What rank 0 found and decided; the same on all ranks."""

    inputs: Inputs
    left: Left
    probe: Probe | None


def run(world: World, job: Job, overwrite: bool, traced: bool = False) -> bool:
    """Answers the job's prompts, and writes a trace of it beside the output where `traced`. Collective.

    Returns whether there was anything to do.

    Raises `Agreed` with the failures of `config`, `inputs` and `files`.
    """
    plan = on_root(world, lambda: _plan(world, job, overwrite, traced))
    if plan.left.finished:
        return False
    placement = place(plan.inputs.model.spec, world.size)
    origin = Provenance(job.toml(), plan.inputs.identity(job), versions(world.library), world.size, world.hosts,
                        placement.most)
    pool = np.setdiff1d(plan.inputs.rows, plan.left.done).tolist()
    recorded = open_trace(world.size) if traced else Untraced()
    if pool:
        _answer(world, job, plan, pool, placement, origin, recorded)
    world.comm.Barrier()  # every part is on disk
    on_root(world, lambda: results.pack(Path(job.output), plan.inputs.prompts, origin, _decoder(plan.inputs),
                                        plan.inputs.rows))
    recorded.write(world, beside(Path(job.output)))  # behind the results, which a full disk must not cost
    return True


def _plan(world: World, job: Job, overwrite: bool, traced: bool) -> Plan:
    found = inputs.read(job)
    if traced:
        paths.check_output(beside(Path(job.output)), Path(job.model), Path(job.prompts))
    if overwrite:
        output.clear(job)
    left = output.look(job, found.identity(job))
    output.tidy(job, left)
    plan = Plan(found, left, read_probe(job, found.model.spec, world.size, world.library))
    vet.end()  # from here on what was looked through is read
    return plan


def _answer(world: World, job: Job, plan: Plan, pool: list[int], placement: Placement, origin: Provenance,
            recorded: Untraced) -> None:
    model, lengths = plan.inputs.model.spec, plan.inputs.prompts.lengths[pool]
    sizes, memory = plan_rank(world, model, job, lengths, placement, gpu.free_memory)
    with planned(memory):
        _compute(world, job, plan, pool, placement, sizes, memory, origin, recorded)


def _compute(world: World, job: Job, plan: Plan, pool: list[int], placement: Placement, sizes: Sizes,
             memory: Memory, origin: Provenance, recorded: Untraced) -> None:
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
                    (model.spec.layers, model.spec.experts))
    progress = open_progress(world.rank, len(pool))
    recorded.align(world.comm, watch.idle)
    generate(vote, world.rank, plan.inputs.prompts, pool, sequences, segments, turns, record, progress)
    recorded.align(world.comm, watch.idle)
    progress.close()
    together(world, record.commit)
    vote.free()
    segments.free()
    watch.free()


def _decoder(found: Inputs) -> Callable[[np.ndarray], str]:
    if found.model.tokenizer:
        try:
            return Tokenizer(found.model.tokenizer).decode
        except JobError as error:
            print(f"hpcmoe: warning: texts are left empty: {error}", file=sys.stderr)
    return lambda tokens: ""


def versions(library: str = "") -> str:
    """What computed: versions of this program and of what it stands on, one line."""
    found = [f"hpcmoe {__version__}", f"Python {platform.python_version()}", f"numpy {np.__version__}",
             f"h5py {h5py.version.version}", f"HDF5 {h5py.version.hdf5_version}"]
    return ", ".join(found + ([library] if library else []))
