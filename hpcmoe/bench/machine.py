"""`bench machine`: what this machine's ranks do, as `hpcmoe predict` takes it.

Steps of small models are timed, stage by stage; simulated, they tell how many bytes and FLOPs each stage has, and how
often it is begun. Rates, and an overhead of each stage, are fitted to the times: t = n o + max(bytes / r, FLOPs / f)
+ copied / c, the bytes of weights that a CPU's BLAS copies.
"""

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import product

import numpy as np
from mpi4py import MPI

from hpcmoe import array
from hpcmoe.config import Generate, Schedule
from hpcmoe.engine import device, layer, schedule
from hpcmoe.engine.memory import Sizes
from hpcmoe.engine.seats import place
from hpcmoe.exchange.interface import until
from hpcmoe.exchange.lane import Way
from hpcmoe.exchange.watch import Unwatched
from hpcmoe.files.drawn import Drawn
from hpcmoe.kernels.linear import FEW
from hpcmoe.launch import World
from hpcmoe.predict.demand import Demand
from hpcmoe.predict.layout import Layout, bare
from hpcmoe.predict.machine import Device, Hardware, Links, Overhead
from hpcmoe.predict.simulate import Given, batch_of, simulate
from hpcmoe.slots import held_by
from hpcmoe.spec import Attention, ModelSpec, Moe
from hpcmoe.types import STAGES, Batch

LEAST, MOST = 9, 60
"""Steps of a shape: as many as take `CALM` seconds, within these."""
CALM = 0.8
COMPUTED = tuple(stage for stage in STAGES if stage != "exchange")
RATES = {"host": (np.geomspace(1e9, 2e12, 30), np.geomspace(5e9, 5e12, 30), np.geomspace(5e8, 1e12, 15)),
         "device": (np.geomspace(1e11, 1e13, 40), np.geomspace(1e13, 2e15, 40), np.zeros(1))}
"""Bytes/s, FLOP/s and bytes/s of copies that are tried."""


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
    """The fastest of a shape's steps: others on the machine slow some."""

    shape: Shape
    seconds: float
    """of the slowest rank"""
    stages: np.ndarray
    """`[len(STAGES)]`: means over the ranks"""
    moving: float
    """seconds of exchanges on the rank that waited least for others"""
    chosen: np.ndarray
    """`[layers, E]`: how likely a token went to each expert"""


def measure(world: World, shape: Shape) -> Measured:
    """Steps of one micro-batch. Collective; the same on all ranks."""
    spec = shape.model(world.size)
    placements, dtype = place(spec, world.size), array.FLOAT32 if world.memory == "host" else array.BFLOAT16
    held = device.load(Drawn(spec, 0), held_by(placements, world.rank), dtype, world.memory)
    sizes = Sizes(shape.sequences, shape.sequences * max(shape.rows, shape.cached), spec.context)
    segments = device.open_segments(world.comm, Unwatched(world.idle), spec, held, placements, sizes, Generate(), dtype,
                                    Way(memory=world.memory), 1, overlapped=False)
    def step(batch: Batch) -> tuple[float, np.ndarray, np.ndarray]:
        """Seconds, stages and rows of this rank."""
        until(world.comm.Ibarrier().Test, world.idle)
        segments.clock.read()
        begin = time.perf_counter()
        outcome, = schedule.serial([layer.step(segments, batch, 0)], segments.clock, world.idle, world.idle)
        return time.perf_counter() - begin, segments.clock.read(), outcome.load
    if shape.cached:  # what the tokens are behind of is computed once
        step(batch_of(spec, [(shape.cached, 0)] * shape.sequences))
    step(shape.batch)
    rounds, best = 0, (np.inf, np.zeros(len(STAGES)), np.zeros((0, 0)))
    end = time.perf_counter() + CALM
    while rounds < LEAST or (rounds < MOST and world.comm.bcast(time.perf_counter() < end)):
        mine, stages, load = step(shape.batch)
        seconds = world.comm.allreduce(mine, MPI.MAX)
        if seconds < best[0]:
            best = seconds, stages, load
        rounds += 1
    segments.free()
    rows = world.comm.allreduce(best[2].astype(np.float64))
    assert spec.moe
    moving = world.comm.allreduce(float(best[1][STAGES.index("exchange")]), MPI.MIN)
    return Measured(shape, best[0], world.comm.allreduce(best[1]) / world.size, moving,
                    spec.moe.top_k * rows / rows.sum(axis=1, keepdims=True))


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
    memory = "host" if value == 4 else "device"
    few = FEW if memory == "host" else 0
    counting = Hardware(name, Device(1e30, 1e30, 1e30, few=few, copy_rate=1e30, weight=value, value=value),
                        Links(ranks_per_node, 1e30, 1e30), ones)
    steps = [simulated(one, counting, ranks) for one in found]
    share = np.array([1 / one.seconds for one in found])  # errors count in parts of a step
    times = {stage: np.array([one.stages[STAGES.index(stage)] for one in found]) for stage in STAGES}
    spans = np.array([one.shape.layers * one.shape.sequences for one in found], np.float64)
    work = {stage: Known(times[stage], *np.array([[w.bytes, w.flops, w.copied, count] for w, count in
                                                  (step.done[stage] for step in steps)]).T) for stage in COMPUTED}
    best, chosen = np.inf, (0.0, 0.0, 0.0, dict[str, float]())
    for rate, flops, copies in product(*RATES[memory]):
        error, over = _overheads(work, spans, share, rate, flops, copies)
        if error < best:
            best, chosen = error, (rate, flops, copies, over)
    rate, flops, copies, over = chosen
    host = np.array([one.seconds - one.stages.sum() for one in found])
    if ranks == 1:  # its exchanges are calls and copies only
        host += times["exchange"]
    begun = np.array([2 + 5 * one.shape.layers for one in found], np.float64)
    room = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / min(ranks, ranks_per_node)
    kept = Device(float(flops), float(rate), room, few=few, copy_rate=float(copies), weight=value, value=value)
    return Hardware(name, kept, _links(found, steps, share, ranks_per_node),
                    Overhead(**over, host=_positive(begun, host, share)))


@dataclass(frozen=True)
class Known:
    """What is known of a stage, `[shapes]` each."""

    seconds: np.ndarray
    bytes: np.ndarray
    flops: np.ndarray
    copied: np.ndarray
    count: np.ndarray
    """how often it was begun"""


def _overheads(work: Mapping[str, Known], spans: np.ndarray, share: np.ndarray, rate: float, flops: float,
               copies: float) -> tuple[float, dict[str, float]]:
    """The overhead of each stage that fits these rates best, and the sum of squares that is left."""
    error, over = 0.0, {}
    for stage, known in work.items():
        rest = known.seconds - np.maximum(known.bytes / rate, known.flops / flops)
        if copies:
            rest = rest - known.copied / copies
        if stage == "attention":
            over[stage], over["span"] = _two(known.count, spans, rest, share)
            rest = rest - over["span"] * spans
        else:
            over[stage] = _positive(known.count, rest, share)
        error += float((((rest - over[stage] * known.count) * share) ** 2).sum())
    return error, over


def _two(a: np.ndarray, b: np.ndarray, seconds: np.ndarray, share: np.ndarray) -> tuple[float, float]:
    """Seconds of each of both counts, by least squares; 0 at least."""
    A, B, y = a * share, b * share, seconds * share
    aa, ab, bb, ay, by = A @ A, A @ B, B @ B, A @ y, B @ y
    determinant = aa * bb - ab * ab
    if determinant > 1e-12 * aa * bb:
        first, second = (bb * ay - ab * by) / determinant, (aa * by - ab * ay) / determinant
        if first >= 0 and second >= 0:
            return float(first), float(second)
    first, second = max(0.0, ay / aa), max(0.0, by / bb)
    return (first, 0.0) if ((y - first * A) ** 2).sum() <= ((y - second * B) ** 2).sum() else (0.0, second)


def _positive(count: np.ndarray, seconds: np.ndarray, share: np.ndarray) -> float:
    """Seconds of each of `count`, by least squares; 0 at least."""
    return max(0.0, float((count * share * seconds * share).sum() / ((count * share) ** 2).sum()))


def _links(found: Sequence[Measured], steps: Sequence, share: np.ndarray, ranks_per_node: int) -> Links:
    """What an exchange takes beside its bytes, and the rate of these: two and a half times the former in each layer."""
    times = np.array([one.moving for one in found])
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
    return short(asdict(hw))
