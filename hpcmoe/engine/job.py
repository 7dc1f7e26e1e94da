"""A job from beginning to end, on every rank."""

import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from hpcmoe import __version__, array
from hpcmoe.config import Job
from hpcmoe.engine import inputs
from hpcmoe.engine.batch import Sequences
from hpcmoe.engine.clock import Clock
from hpcmoe.engine.generate import Vote, generate
from hpcmoe.engine.inputs import Inputs
from hpcmoe.engine.memory import place, plan_sizes
from hpcmoe.engine.progress import open_progress
from hpcmoe.engine.record import Record
from hpcmoe.engine.segments import CpuSegments, chooser
from hpcmoe.errors import JobError
from hpcmoe.exchange.lane import open_lane
from hpcmoe.files import parts, results
from hpcmoe.files.parts import Provenance
from hpcmoe.files.tokenizer import Tokenizer
from hpcmoe.launch import World, on_root, together
from hpcmoe.model import weights
from hpcmoe.model.cache import KvCache
from hpcmoe.types import Placement


@dataclass(frozen=True)
class Plan:
    """What rank 0 found and decided; the same on all ranks."""

    inputs: Inputs
    finished: bool
    """whether the output is there already"""
    attempt: int
    done: np.ndarray
    """rows of the prompts that earlier attempts answered"""


def run(world: World, job: Job, overwrite: bool) -> bool:
    """Answers the job's prompts. Collective. Returns whether there was anything to do.

    Raises `Agreed` with the failures of `config`, `inputs` and `files`.
    """
    output = Path(job.output)
    plan = on_root(world, lambda: _plan(job, output, overwrite))
    if plan.finished:
        return False
    placement = place(plan.inputs.model.spec, world.size)
    origin = Provenance(job.toml(), plan.inputs.identity(job), versions(world.library), world.size, world.hosts,
                        placement.most)
    pool = np.setdiff1d(np.arange(len(plan.inputs.prompts)), plan.done).tolist()
    if pool:
        _answer(world, job, plan, pool, placement, origin)
    world.comm.Barrier()  # every part is on disk
    on_root(world, lambda: results.pack(output, plan.inputs.prompts, origin, _decoder(plan.inputs)))
    return True


def _plan(job: Job, output: Path, overwrite: bool) -> Plan:
    found = inputs.read(job)
    if overwrite:
        output.unlink(missing_ok=True)
        parts.remove(output)
    identity = found.identity(job)
    finished = results.is_finished(output, identity)
    if finished:
        parts.remove(output)
    if output.parent.exists() and not output.parent.is_dir():
        raise JobError(f"output {output}: {output.parent} is not a folder")
    attempt, done = parts.finished(output, identity)
    return Plan(found, finished, attempt, done)


def output_state(output: Path, identity: str) -> str:
    """What a run would find at `output`, in words. Raises `JobError` where it is another job's."""
    if results.is_finished(output, identity):
        return "finished already"
    _, done = parts.finished(output, identity)
    return f"unfinished: {len(done)} prompts are answered, a run goes on from there" if len(done) else "not there yet"


def _answer(world: World, job: Job, plan: Plan, pool: list[int], placement: Placement, origin: Provenance) -> None:
    model, dtype = plan.inputs.model, array.DTYPES[job.compute.dtype]
    sizes = plan_sizes(model.spec, job, plan.inputs.prompts.lengths[pool], world.size)
    held = together(world, lambda: weights.load(model, lambda layer: placement.held_by(world.rank), dtype))
    cache = KvCache(model.spec, sizes.sequences, sizes.length, dtype)
    clock, lane, vote = Clock(), open_lane(world.comm, world.idle), Vote(world.comm, world.idle)
    segments = CpuSegments(model.spec, held, cache, lambda layer: placement, lane, clock,
                           chooser(job.generate), dtype)
    sequences = Sequences(model.spec, job, sizes.sequences, sizes.tokens)
    record = Record(Path(job.output), plan.attempt, world.rank, origin, job.checkpoint.every,
                    (model.spec.layers, model.spec.experts))
    progress = open_progress(world.rank, len(pool))
    generate(vote, world.rank, plan.inputs.prompts, pool, sequences, segments, clock, record, progress)
    progress.close()
    together(world, record.commit)
    vote.free()
    lane.free()


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
