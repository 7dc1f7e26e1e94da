"""`bench machine`: what this machine's ranks do, as `hpcmoe predict` takes it.

Steps of small models are timed, stage by stage; simulated, they tell how many bytes and FLOPs each stage has, and how
often it is begun. Two rates and an overhead of each stage are fitted to the times: t = n o + max(bytes / r, FLOPs / f).
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace

import numpy as np

from hpcmoe import array
from hpcmoe.config import Generate, Schedule
from hpcmoe.engine import device, layer, schedule
from hpcmoe.engine.memory import Sizes
from hpcmoe.engine.seats import place
from hpcmoe.exchange import tune
from hpcmoe.exchange.lane import Way
from hpcmoe.exchange.watch import Unwatched
from hpcmoe.files.drawn import Drawn
from hpcmoe.launch import World
from hpcmoe.predict.demand import Demand
from hpcmoe.predict.layout import Layout, bare
from hpcmoe.predict.machine import Device, Hardware, Links, Overhead
from hpcmoe.predict.simulate import Given, batch_of, simulate
from hpcmoe.slots import held_by
from hpcmoe.spec import Attention, ModelSpec, Moe
from hpcmoe.types import STAGES, Batch

ROUNDS = 9
COMPUTED = tuple(stage for stage in STAGES if stage != "exchange")
GRID = 60
"""Rates of each kind that are tried."""


@dataclass(frozen=True)
class Shape:
    """A model and a step of it, on each rank."""

    hidden: int
    intermediate: int
    layers: int
    experts: int
    """of a rank"""
    top_k: int
    sequences: int
    cached: int
    """tokens of each sequence, behind which one follows; with 0 `rows` follow"""
    rows: int = 1

    def model(self, ranks: int) -> ModelSpec:
        heads = self.hidden // 64
        E = self.experts * ranks
        return ModelSpec("bench", self.layers, self.hidden, 2048, self.cached + self.rows + 1,
                         Attention(heads, heads, 64), None, Moe(E, min(self.top_k, E), self.intermediate))

    @property
    def batch(self) -> Batch:
        return batch_of(self.model(1), [(self.rows, self.cached)] * self.sequences)


SHAPES = (Shape(256, 256, 4, 1, 1, 1, 16), Shape(256, 512, 4, 2, 2, 8, 64), Shape(512, 1024, 4, 1, 2, 4, 128),
          Shape(1024, 1024, 3, 2, 2, 2, 32), Shape(1024, 2048, 3, 1, 1, 16, 64), Shape(512, 512, 4, 2, 2, 4, 0, 64),
          Shape(1024, 1024, 3, 1, 2, 2, 0, 128))
"""From few rows to some hundred, of small rows and large ones."""


@dataclass(frozen=True)
class Measured:
    """Medians of a shape's steps."""

    shape: Shape
    seconds: float
    """of the slowest rank"""
    stages: np.ndarray
    """`[len(STAGES)]`: means over the ranks"""
    chosen: np.ndarray
    """`[layers, E]`: how likely a token went to each expert"""


def measure(world: World, shape: Shape, rounds: int = ROUNDS) -> Measured:
    """Steps of one micro-batch. Collective; the same on all ranks."""
    spec = shape.model(world.size)
    placements, dtype = place(spec, world.size), array.FLOAT32 if world.memory == "host" else array.BFLOAT16
    held = device.load(Drawn(spec, 0), held_by(placements, world.rank), dtype, world.memory)
    sizes = Sizes(shape.sequences, shape.sequences * max(shape.rows, shape.cached), spec.context)
    segments = device.open_segments(world.comm, Unwatched(world.idle), spec, held, placements, sizes, Generate(), dtype,
                                    Way(memory=world.memory), 1, overlapped=False)
    batch, took, load = shape.batch, [], np.zeros((spec.layers, spec.experts))

    def step() -> None:
        nonlocal load
        outcome, = schedule.serial([layer.step(segments, batch, 0)], segments.clock, world.idle, world.idle)
        load = outcome.load
        took.append(segments.clock.read())
    if shape.cached:  # what the tokens are behind of is computed once
        first = batch_of(spec, [(shape.cached, 0)] * shape.sequences)
        schedule.serial([layer.step(segments, first, 0)], segments.clock, world.idle, world.idle)
    segments.clock.read()
    seconds = tune.medians(world.comm, world.idle, {"warm": step}, 2)
    took.clear()
    seconds = tune.medians(world.comm, world.idle, {"step": step}, rounds)
    segments.free()
    stages = world.comm.allreduce(np.median(took, axis=0)) / world.size
    rows = world.comm.allreduce(load.astype(np.float64))
    return Measured(shape, seconds["step"], stages, spec.moe.top_k * rows / rows.sum(axis=1, keepdims=True)
                    if spec.moe else rows)


def simulated(measured: Measured, hw: Hardware, ranks: int):
    """The same step, predicted: a `simulate.Step`."""
    spec = measured.shape.model(ranks)
    assert spec.moe
    sample = np.argsort(-measured.chosen[:1], axis=1)[:, :spec.moe.top_k].astype(np.int64)
    layout = Layout(ranks, bare(schedule=Schedule("serial", 1)))
    given = Given(Demand(measured.chosen, sample), even=True)
    return simulate(spec, hw, layout, given, [measured.shape.batch]).steps[0]


def fit(found: Sequence[Measured], ranks: int, ranks_per_node: int, name: str, value: int) -> Hardware:
    """Hardware that takes as long, as nearly as can be, for values of so many bytes."""
    ones = Overhead(**{field.name: float(field.name in COMPUTED) for field in fields(Overhead)})
    counting = Hardware(name, Device(1e30, 1e30, 1e30, weight=value, value=value),
                        Links(ranks_per_node, 1e30, 1e30), ones)
    steps = [simulated(one, counting, ranks) for one in found]
    share = np.array([1 / one.seconds for one in found])  # errors count in parts of a step
    times = {stage: np.array([one.stages[STAGES.index(stage)] for one in found]) for stage in STAGES}
    best, chosen = np.inf, (0.0, 0.0, dict[str, float]())
    work = {stage: np.array([[step.done[stage][0].bytes, step.done[stage][0].flops, step.done[stage][1]]
                             for step in steps]) for stage in COMPUTED}
    for rate in np.geomspace(1e8, 1e13, GRID):
        for flops in np.geomspace(1e9, 1e15, GRID):
            error, over = _overheads(work, times, share, rate, flops)
            if error < best:
                best, chosen = error, (rate, flops, over)
    rate, flops, over = chosen
    links = _links(found, steps, share, ranks_per_node)
    host = np.array([one.seconds - one.stages.sum() for one in found])
    begun = np.array([2 + 5 * one.shape.layers for one in found], np.float64)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / min(ranks, ranks_per_node)
    return Hardware(name, Device(float(flops), float(rate), memory, weight=value, value=value), links,
                    Overhead(**over, host=_positive(begun, host, share)))


def _overheads(work: Mapping[str, np.ndarray], times: Mapping[str, np.ndarray], share: np.ndarray, rate: float,
               flops: float) -> tuple[float, dict[str, float]]:
    """The overhead of each stage that fits these rates best, and the sum of squares that is left."""
    error, over = 0.0, {}
    for stage, table in work.items():
        rest = times[stage] - np.maximum(table[:, 0] / rate, table[:, 1] / flops)
        over[stage] = _positive(table[:, 2], rest, share)
        error += float((((rest - over[stage] * table[:, 2]) * share) ** 2).sum())
    return error, over


def _positive(count: np.ndarray, seconds: np.ndarray, share: np.ndarray) -> float:
    """Seconds of each of `count`, by least squares; 0 at least."""
    return max(0.0, float((count * share * seconds * share).sum() / ((count * share) ** 2).sum()))


def _links(found: Sequence[Measured], steps: Sequence, share: np.ndarray, ranks_per_node: int) -> Links:
    """What an exchange takes beside its bytes, and the rate of these: two and a half times the former in each layer."""
    times = np.array([one.stages[STAGES.index("exchange")] for one in found])
    moved = np.array([float(step.traffic.bytes[1:].sum()) for step in steps])
    count = np.array([2.5 * one.shape.layers for one in found])
    if not moved.any():
        return Links(ranks_per_node, 1e9, 1e9)
    columns = np.stack([count, moved], axis=1) * share[:, None]
    start, pace = np.linalg.lstsq(columns, times * share, rcond=None)[0].tolist()
    if start < 0 or pace <= 0:
        start, pace = (_positive(count, times, share), 1e-12) if pace <= 0 else (0.0, _positive(moved, times, share))
    return Links(ranks_per_node, 1 / max(pace, 1e-12), 1 / max(pace, 1e-12), start=start)


def rounded(hw: Hardware) -> dict:
    """As a table of three digits."""
    def short(value):
        return {k: short(v) for k, v in value.items()} if isinstance(value, dict) else (
            float(f"{value:.3g}") if isinstance(value, float) else value)
    return short(asdict(replace(hw)))
