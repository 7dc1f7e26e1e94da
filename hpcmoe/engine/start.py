"""What rank 0 finds and decides before a run: inputs, the lock, what earlier runs left."""

import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from hpcmoe import paths, ulfm
from hpcmoe.config import Job
from hpcmoe.engine import inputs, output
from hpcmoe.engine.inputs import Inputs
from hpcmoe.engine.output import Left
from hpcmoe.engine.seats import group_size, place
from hpcmoe.engine.versions import compare
from hpcmoe.engine.ways import read_probe
from hpcmoe.files import lock, vet
from hpcmoe.files.lock import Held
from hpcmoe.files.probe import Probe
from hpcmoe.files.trace import beside
from hpcmoe.launch import World
from hpcmoe.slots import Placements


@dataclass(frozen=True)
class Plan:
    """The same on all ranks."""

    inputs: Inputs
    left: Left
    probe: Probe | None
    placements: Placements
    """on the ranks of a group"""
    held: Held


def plan(world: World, job: Job, overwrite: bool, traced: bool, locked: ExitStack) -> Plan:
    """Takes the lock for as long as `locked` lasts, and tidies what lies at the output. On rank 0.

    Raises `JobError`, `InputError`.
    """
    if job.checkpoint.on_failure == "shrink":
        ulfm.check(world.library, world.memory, job.exchange.transport)
    found = inputs.read(job)
    ranks = group_size(world.size, job)
    placements = place(found.model.spec, ranks, job)
    held = locked.enter_context(lock.taken(output.check_place(job)))
    if traced:
        paths.check_output(beside(Path(job.output)), Path(job.model), Path(job.prompts))
    if overwrite:
        output.clear(job)
    left = output.look(job, found.identity(job), found.model.spec.vocabulary)
    output.tidy(job, left)
    for line in left.warnings() + (compare(left.versions) if job.compute.reproducible else []):
        print(f"hpcmoe: warning: {line}", file=sys.stderr, flush=True)
    probe = read_probe(job, found.model.spec, ranks, world.library)
    vet.end()  # from here on what was looked through is read
    return Plan(found, left, probe, placements, held)
