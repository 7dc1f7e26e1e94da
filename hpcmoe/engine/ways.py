"""What `auto` comes to: how rows travel, and how steps are cut, from the job and its probe."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hpcmoe import array
from hpcmoe.config import Job
from hpcmoe.engine import schedule
from hpcmoe.exchange import tune, tune_hops
from hpcmoe.exchange.grid import grid
from hpcmoe.exchange.lane import Way
from hpcmoe.exchange.presum import Presum
from hpcmoe.exchange.relayed import Relayed
from hpcmoe.files import probe
from hpcmoe.files.probe import Probe
from hpcmoe.launch import World
from hpcmoe.slots import Placements
from hpcmoe.spec import ModelSpec, Moe
from hpcmoe.types import Hops

MOST_TOKENS = 256
"""Tokens of a rank with which two hops are measured, at most."""


@dataclass(frozen=True)
class Turns:
    """How the steps of a job are cut and take turns; the same on all ranks."""

    schedule: schedule.Schedule
    most: int
    """micro-batches of a step at most"""
    parts: Callable[[int], int]
    """tokens of a step on the fullest rank -> its micro-batches"""

    @property
    def overlapped(self) -> bool:
        """Whether arithmetic runs beside the exchange."""
        return self.schedule is schedule.overlapped


def units(model: ModelSpec, job: Job) -> int:
    """uint16 values of a row on its way."""
    return model.hidden * array.DTYPES[job.compute.dtype].itemsize // 2


def read_probe(job: Job, model: ModelSpec, ranks: int, library: str) -> Probe | None:
    """The job's probe; None where it has none, or one of other ranks, rows, MPI or model, of which a warning tells.

    Hosts may differ. Raises `InputError`, `JobError`.
    """
    if not job.probe:
        return None
    found = probe.read(Path(job.probe))
    pairs = {"ranks": (len(found.host), ranks), "bytes of a row": (2 * found.units, 2 * units(model, job)),
             "the MPI library": (found.library, library), "the model": (found.model, model.name)}
    differ = [f"{what} {there} there, {here} here" for what, (there, here) in pairs.items() if there != here]
    if not differ:
        if job.exchange.transport == "auto":
            found.best(job.exchange.mode)  # raises where none works: here, where one rank tells
        return found
    print(f"hpcmoe: warning: probe {job.probe} is left aside ({'; '.join(differ)}): run hpcmoe probe again",
          file=sys.stderr, flush=True)
    return None


def choose_way(world: World, job: Job, model: ModelSpec, placements: Placements, found: Probe | None) -> Way:
    """How rows travel. Measures both modes where `auto` has no probe to go by. Collective."""
    exact = job.balance.exact and any(placement.replicated for placement in placements)
    way, nodes = replace(_choose_rows(world, job, model, found), exact=exact), len(set(world.nodes))
    if job.exchange.mode == "twohop" and model.moe and nodes > 1:
        return replace(way, by=_relayed(world, job, model.moe))
    if job.exchange.mode == "auto":
        return measure_hops(world, job, model, placements, way, found.hops if found and found.nodes == nodes else None)
    return way


def measure_hops(world: World, job: Job, model: ModelSpec, placements: Placements, way: Way,
                 known: Hops | None = None) -> Way:
    """`way` with two hops where they may pay, and a table by which to take them, which is measured where it is not
    `known`. Collective."""
    if not model.moe or model.moe.top_k * placements[0].shards == 1 or not 1 < len(set(world.nodes)) < world.size:
        return way
    by, layer = _relayed(world, job, model.moe), min(model.moe_layers)
    home = model.hidden * array.answers(array.DTYPES[job.compute.dtype], placements[layer].shards).itemsize // 2
    return replace(way, by=by, hops=known or tune_hops.measure(world.comm, world.idle, units(model, job), way, by,
                                                               placements[layer], MOST_TOKENS, home=home))


def _relayed(world: World, job: Job, moe: Moe) -> Relayed:
    presum = Presum(array.DTYPES[job.compute.dtype], moe.round_weights) if job.exchange.presum else None
    return Relayed(grid(world.nodes), moe.top_k * job.parallel.expert_tensor, presum)


def among(way: Way, nodes: Sequence[int]) -> Way:
    """`way` for other ranks on `nodes` `[R]`, as in `launch.World`: those that live."""
    if not way.by:
        return way
    if len(set(nodes)) == 1:
        return replace(way, by=None, hops=None)
    return replace(way, by=replace(way.by, grid=grid(nodes)))


def _choose_rows(world: World, job: Job, model: ModelSpec, found: Probe | None) -> Way:
    mode, transport, memory = job.exchange.mode, job.exchange.transport, world.memory
    if transport == "auto":
        transport = found.best(mode) if found else "device"
    if mode == "twohop":
        mode = "auto"  # between nodes
    if mode != "auto":
        return Way(mode, transport, memory=memory)
    if world.size == 1 or not model.moe or (found and not found.works(transport, "persistent")):
        return Way("alltoallv", transport, memory=memory)
    if found and found.speeds and transport == found.best():
        return Way(mode, transport, found.speeds, memory)
    way = Way(mode, transport, memory=memory)
    return replace(way, speeds=tune.measure(world.comm, world.idle, units(model, job), way))


def choose_turns(job: Job, found: Probe | None) -> Turns:
    """How steps are cut. Never by times of the job's own, since other cuts may give other last bits."""
    cut = job.schedule.micro_batches
    if job.schedule.mode == "overlapped":
        return Turns(schedule.overlapped, cut, lambda rows: cut)
    if job.schedule.mode == "serial":
        return Turns(schedule.serial, cut, lambda rows: cut)
    cuts = found.cuts if found else None
    if cuts and any(cuts.pays(rows) for rows in cuts.rows.tolist()):
        return Turns(schedule.overlapped, 2, lambda rows: 2 if cuts.pays(rows) else 1)
    return Turns(schedule.serial, 1, lambda rows: 1)
