"""Steps of small models, timed stage by stage: what `bench machine` fits, and `make validate-predict` compares with."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from mpi4py import MPI

from hpcmoe import array
from hpcmoe.config import Generate
from hpcmoe.engine import device, layer, schedule
from hpcmoe.engine.batch import split
from hpcmoe.engine.memory import Sizes
from hpcmoe.engine.seats import place
from hpcmoe.exchange.interface import until
from hpcmoe.exchange.lane import Way
from hpcmoe.exchange.watch import Unwatched
from hpcmoe.files.drawn import Drawn
from hpcmoe.launch import World
from hpcmoe.predict.simulate import batch_of
from hpcmoe.slots import held_by
from hpcmoe.spec import Attention, ModelSpec, Moe
from hpcmoe.types import Batch

ROUNDS, STEPS = 8, 5
"""Rounds in which all shapes take turns, so that a busy machine slows all alike; and steps of a shape in each, behind
one that does not count."""
BEFORE, VOCABULARY = 1024, 2048
"""Tokens of a step that computes what others are behind of; and how many different ones there are."""


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
    micro_batches: int = 1
    """overlapped, where there are several"""

    def model(self, ranks: int) -> ModelSpec:
        dim = 128 if self.hidden >= 2048 else 64
        E = self.experts * ranks
        return ModelSpec("bench", self.layers, self.hidden, VOCABULARY, self.cached + self.rows + 1,
                         Attention(self.hidden // dim, self.hidden // dim, dim), None,
                         Moe(E, min(self.top_k, E), self.intermediate))

    @property
    def batch(self) -> Batch:
        return self.piece(self.rows, self.cached)

    def piece(self, rows: int, cached: int, rank: int = 0) -> Batch:
        """The next `rows` tokens of all sequences, drawn by each rank for itself: the same ones would all go to the
        same experts."""
        made = batch_of(self.model(1), [(rows, cached)] * self.sequences)
        token = np.random.default_rng((rank, cached)).integers(0, VOCABULARY, made.rows, np.int32)
        return replace(made, token=token, position=np.tile(cached + np.arange(rows, dtype=np.int32), self.sequences))


HOST = (Shape(512, 2048, 2, 1, 2, 8, 48), Shape(768, 1536, 2, 1, 1, 6, 64), Shape(1024, 1024, 1, 2, 2, 2, 32),
        Shape(1024, 2048, 2, 1, 1, 16, 64), Shape(1024, 512, 3, 1, 2, 8, 160), Shape(1280, 1280, 1, 1, 1, 4, 32),
        Shape(768, 768, 2, 2, 2, 12, 96), Shape(1536, 1024, 1, 1, 2, 1, 100), Shape(768, 1024, 2, 1, 2, 24, 48),
        Shape(512, 1536, 2, 2, 1, 2, 0, 192), Shape(1024, 1024, 2, 1, 2, 2, 0, 128),
        Shape(768, 1024, 2, 1, 2, 3, 0, 64), Shape(512, 1024, 3, 1, 2, 2, 64), Shape(768, 2048, 2, 1, 1, 4, 40),
        Shape(1024, 1024, 2, 1, 2, 12, 64, 1, 2), Shape(768, 768, 2, 2, 2, 24, 96, 1, 2),
        Shape(512, 1536, 2, 1, 2, 2, 0, 192, 2))
DEVICE = (Shape(2048, 1024, 4, 1, 2, 16, 256), Shape(4096, 2048, 2, 1, 2, 48, 120),
          Shape(7168, 2048, 1, 1, 2, 8, 250), Shape(3072, 2048, 2, 2, 2, 120, 120),
          Shape(3072, 1536, 3, 1, 1, 8, 120), Shape(2560, 1536, 2, 1, 2, 200, 60),
          Shape(2048, 2048, 4, 1, 2, 2, 1000), Shape(4096, 1024, 2, 2, 2, 1, 60),
          Shape(4096, 2048, 2, 1, 2, 4, 0, 500), Shape(5120, 2048, 1, 1, 2, 1, 0, 800),
          Shape(2048, 1024, 3, 2, 1, 8, 0, 250), Shape(2560, 1024, 2, 2, 2, 2, 0, 350),
          Shape(4096, 2048, 2, 1, 2, 96, 120, 1, 2), Shape(3072, 2048, 2, 2, 2, 48, 250, 1, 2),
          Shape(2048, 1536, 3, 1, 2, 4, 0, 500, 2), Shape(3072, 1024, 2, 2, 1, 2, 0, 600, 2))
SHAPES = {"host": HOST, "device": DEVICE}
"""What is calibrated on: from few rows to some hundred. Layers are larger than a core's cache, as those of real models
are: in smaller ones all that is beside the products, the interpreter's work too, is quicker."""


@dataclass(frozen=True)
class Measured:
    """A step of a shape: means over the faster half of its steps, for others on the machine slow some."""

    shape: Shape
    seconds: float
    """of the slowest rank"""
    stages: np.ndarray
    """`[len(STAGES)]`: means over the ranks"""
    chosen: np.ndarray
    """`[layers, E]`: how likely a token went to each expert"""


def measure(world: World, shapes: Sequence[Shape]) -> list[Measured]:
    """Steps of all shapes in turns. Collective; the same on all ranks."""
    opened = [Opened(world, shape) for shape in shapes]
    found: list[list[tuple[float, np.ndarray, np.ndarray]]] = [[] for _ in shapes]
    for _ in range(ROUNDS):
        for one, steps in zip(opened, found):
            steps += [one.step() for _ in range(1 + STEPS)][1:]
    for one in opened:
        one.free()
    return [_mean(world, shape, steps) for shape, steps in zip(shapes, found)]


class Opened:
    """A model that is ready for steps."""

    def __init__(self, world: World, shape: Shape) -> None:
        """Collective."""
        self._world, spec = world, shape.model(world.size)
        placements, dtype = place(spec, world.size), array.FLOAT32 if world.memory == "host" else array.BFLOAT16
        held = device.load(Drawn(spec, 0), held_by(placements, world.rank), dtype, world.memory)
        piece = min(shape.cached, max(1, BEFORE // shape.sequences))
        sizes = Sizes(shape.sequences, shape.sequences * max(shape.rows, piece), spec.context)
        self._segments = device.open_segments(world.comm, Unwatched(world.idle), spec, held, placements, sizes,
                                              Generate(), dtype, Way(memory=world.memory), shape.micro_batches,
                                              overlapped=shape.micro_batches > 1)
        for behind in range(0, shape.cached, max(piece, 1)):  # what the tokens are behind of is computed once
            self._run([shape.piece(min(piece, shape.cached - behind), behind, world.rank)])
        self._batches = split(shape.piece(shape.rows, shape.cached, world.rank), shape.micro_batches)

    def step(self) -> tuple[float, np.ndarray, np.ndarray]:
        """Seconds, stages and `[L, E]` rows of this rank. Collective."""
        return self._run(self._batches)

    def _run(self, batches: list[Batch]) -> tuple[float, np.ndarray, np.ndarray]:
        segments, idle = self._segments, self._world.idle
        until(self._world.comm.Ibarrier().Test, idle)
        segments.clock.read()
        begin = time.perf_counter()
        take_turns = schedule.serial if len(batches) == 1 else schedule.overlapped
        outcomes = take_turns([layer.step(segments, batch, n) for n, batch in enumerate(batches)], segments.clock, idle,
                              idle)
        seconds = time.perf_counter() - begin
        return seconds, segments.clock.read(), np.sum([outcome.load for outcome in outcomes], axis=0)

    def free(self) -> None:
        """Collective."""
        self._segments.free()


def _mean(world: World, shape: Shape, steps: Sequence[tuple[float, np.ndarray, np.ndarray]]) -> Measured:
    slowest = np.empty(len(steps))
    world.comm.Allreduce(np.array([seconds for seconds, *_ in steps]), slowest, MPI.MAX)
    faster = np.argsort(slowest)[:max(1, len(steps) // 2)]
    stages = world.comm.allreduce(np.mean([steps[n][1] for n in faster], axis=0)) / world.size
    rows = world.comm.allreduce(steps[0][2].astype(np.float64))
    top_k = min(shape.top_k, rows.shape[1])
    return Measured(shape, float(slowest[faster].mean()), stages, top_k * rows / rows.sum(axis=1, keepdims=True))
