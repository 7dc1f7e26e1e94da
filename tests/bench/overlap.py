"""`make bench-overlap`: how much of an exchange over a slow link `overlapped` hides that `serial` shows.

Two hosts (`twohosts`), a rank and a core on each. Both schedules run the same two micro-batches through the same
weights in turns, with GEMMs of the model's own as the compute; the link is shaped so that the exchange takes a given
part of it. The last line is `hidden NN %`, the least over the shapes.
"""

import sys
import time
from dataclasses import dataclass

import numpy as np
import twohosts

from hpcmoe import array, launch
from hpcmoe.config import Generate
from hpcmoe.engine import device, layer, schedule
from hpcmoe.engine.device import RankSegments
from hpcmoe.engine.memory import Sizes
from hpcmoe.engine.seats import place
from hpcmoe.exchange.lane import Way
from hpcmoe.exchange.watch import Unwatched
from hpcmoe.files.drawn import Drawn
from hpcmoe.model import weights
from hpcmoe.report import text
from hpcmoe.slots import held_by
from hpcmoe.spec import Attention, ModelSpec, Moe
from hpcmoe.types import STAGES, Batch, Span

CALM, MOST = 4, 16
"""Rounds in which no step was faster than those before by a hundredth, after which a shape is measured; and at most."""
WARM = 3
"""Serial steps over a fast link, whose compute time sets the slow link's rate."""
FAST = 1e9
"""bytes/s"""
LAYERS = 16
MICRO_BATCHES = 2


@dataclass(frozen=True)
class Shape:
    """T tokens of a micro-batch, H, I, and the exchange that is aimed at, in parts of the compute time."""

    tokens: int
    hidden: int
    intermediate: int
    part: float


SHAPES = (Shape(128, 2048, 1792, 0.55), Shape(128, 2048, 1792, 0.75), Shape(128, 2048, 1792, 0.95),
          Shape(192, 1536, 1344, 0.75), Shape(64, 3072, 2688, 0.75))
"""I is such that attention and experts take about as long: each hides one direction of the exchange. TCP's own work on
the rank's only core, about 1 ns a byte, cannot be hidden, and at a small H it is not small beside the arithmetic.
"""


@dataclass(frozen=True)
class Figure:
    """Seconds of the fastest step of each schedule: what else runs on the machine slows single steps."""

    compute: float
    exchange: float
    serial: float
    overlapped: float

    @property
    def hidden(self) -> float:
        """Of the shorter of the two, from 0 to 1."""
        return (self.serial - self.overlapped) / min(self.compute, self.exchange)


def model(shape: Shape) -> ModelSpec:
    """Every token goes to both ranks, so that the load is even."""
    heads = shape.hidden // 64
    return ModelSpec("overlap", LAYERS, shape.hidden, 256, 2 * shape.tokens, Attention(heads, heads, 64), None,
                     Moe(2, 2, shape.intermediate))


def open_both(world: launch.World, shape: Shape) -> dict[str, RankSegments]:
    """The same weights behind both schedules. Collective."""
    spec = model(shape)
    placements = place(spec, world.size)
    held = weights.load(Drawn(spec, 0), held_by(placements, world.rank), array.FLOAT32)
    return {mode: device.open_segments(world.comm, Unwatched(world.idle), spec, held, placements,
                                Sizes(MICRO_BATCHES, 0, shape.tokens), Generate(), array.FLOAT32, Way(),
                                MICRO_BATCHES, overlapped=mode == "overlapped")
            for mode in ("serial", "overlapped")}


def batches(shape: Shape) -> list[Batch]:
    """A prompt in each micro-batch, always the same."""
    T, rng = shape.tokens, np.random.default_rng(1)
    return [Batch(rng.integers(0, 256, T).astype(np.int32), np.arange(T, dtype=np.int32), (Span(n, 0, T, 0),),
                  np.array([T - 1], np.int32), np.zeros(1, np.int64), np.full(1, -1, np.int32))
            for n in range(MICRO_BATCHES)]


def step(world: launch.World, mode: str, segments: RankSegments, work: list[Batch]) -> tuple[float, float]:
    """Seconds of a step and of its exchange, the slowest rank's of the first and the mean of the second. Collective."""
    take_turns = schedule.overlapped if mode == "overlapped" else schedule.serial
    world.comm.Barrier()
    segments.clock.read()
    begin = time.perf_counter()
    take_turns([layer.step(segments, batch, n) for n, batch in enumerate(work)], segments.clock,
               segments.watch.idle, segments.watch.attend)
    seconds = time.perf_counter() - begin
    exchange = segments.clock.read()[STAGES.index("exchange")]
    both = world.comm.allgather((seconds, exchange))
    return max(s for s, _ in both), sum(e for _, e in both) / len(both)


def settled(times: list[list[float]]) -> bool:
    """Whether the fastest step of each schedule is known; `times` in seconds, the same on all ranks."""
    return all(len(some) >= MOST or (len(some) > CALM and min(some) > 0.99 * min(some[:-CALM])) for some in times)


def measure(world: launch.World, shape: Shape) -> tuple[Figure, float]:
    """The figure, and the link's rate in bytes/s. Collective."""
    both, work = open_both(world, shape), batches(shape)
    twohosts.shape(FAST)
    calm = min(float(np.subtract(*step(world, "serial", both["serial"], work))) for _ in range(WARM))
    crossing = LAYERS * MICRO_BATCHES * 2 * shape.tokens * shape.hidden * array.FLOAT32.itemsize
    rate = world.comm.bcast(crossing / (shape.part * calm))
    twohosts.shape(rate)
    step(world, "overlapped", both["overlapped"], work)
    times: dict[str, list[tuple[float, float]]] = {mode: [] for mode in both}
    while not settled([[seconds for seconds, _ in steps] for steps in times.values()]):
        for mode, segments in both.items():
            times[mode].append(step(world, mode, segments, work))
    serial, exchange = min(times["serial"])
    overlapped, _ = min(times["overlapped"])
    for segments in both.values():
        segments.free()
    return Figure(serial - exchange, exchange, serial, overlapped), rate


def page(world: launch.World) -> None:
    """What a rank does; rank 0 prints. Collective."""
    grid = text.table(">T", ">H", ">I", ">link", ">compute", ">exchange", ">of compute", ">serial", ">overlapped",
                      ">hidden")
    worst = 1.0
    for shape in SHAPES:
        f, rate = measure(world, shape)
        worst = min(worst, f.hidden)
        if world.rank == 0:
            print(f"T {shape.tokens}, H {shape.hidden}, aimed at {shape.part}: hidden {100 * f.hidden:.0f} %",
                  file=sys.stderr, flush=True)
        grid.add_row(str(shape.tokens), str(shape.hidden), str(shape.intermediate), f"{rate / 1e6:.0f} MB/s",
                     text.seconds(f.compute), text.seconds(f.exchange), f"{f.exchange / f.compute:.2f}",
                     text.seconds(f.serial), text.seconds(f.overlapped), f"{100 * f.hidden:.0f} %")
    if world.rank == 0:
        out = text.console()
        out.print(f"{world.library}; one rank on each of two hosts, a core each, {LAYERS} layers, {MICRO_BATCHES} "
                  "micro-batches of T; the fastest step of each schedule, which take turns until "
                  f"{CALM} rounds are no faster")
        out.print(grid)
        print(f"hidden {100 * worst:.0f} %")


if __name__ == "__main__":
    sys.exit(twohosts.main(__file__, page, 1))
