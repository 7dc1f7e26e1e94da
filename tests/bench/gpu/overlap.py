"""How much of an exchange by way of the host's memory `overlapped` hides, on a GPU that 2 ranks share.

`overlap.py FILE`, under the MPS daemon that run.py has started. As tests/bench/overlap.py does it: two micro-batches of
T tokens, every token to both ranks, both schedules in turns, exchanges of half to all of the compute time. The link is
what it is, so it is the arithmetic that is cut to the exchange: heads and experts are scaled until it fits.
"""

import gc
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cupy
import numpy as np
from figures import Figure, tell

from hpcmoe import gpu, launch

if sys.argv[1:2] == ["rank"]:
    gpu.take("gpu")  # before anything below loads MPI

from hpcmoe.array import BFLOAT16
from hpcmoe.config import Generate
from hpcmoe.engine import device, layer, schedule
from hpcmoe.engine.device import RankSegments
from hpcmoe.engine.memory import Sizes
from hpcmoe.engine.seats import place
from hpcmoe.exchange.lane import Way
from hpcmoe.exchange.watch import Unwatched
from hpcmoe.files.drawn import Drawn
from hpcmoe.slots import held_by
from hpcmoe.spec import Attention, ModelSpec, Moe
from hpcmoe.types import STAGES, Batch, Span

RANKS, T, H = 2, 2048, 7168
LAYERS, MICRO_BATCHES = 16, 2
"""All layers have the same weights, of several hundred MB each, so that many fit: a model is deeper than its first and
its last exchange, which nothing hides."""
HEADS, WIDTH = 96, 12288
"""Of the first model; I is such that attention and experts take about as long."""
MOST = 8.0
"""How much larger the others may be."""
PARTS = (0.55, 0.75, 0.95)
"""The exchange that is aimed at, in parts of the compute time."""
TRIED, ROUNDS = 3, 5
TARGET = 0.85


def model(scale: float, layers: int = LAYERS) -> ModelSpec:
    """Every token goes to both ranks, so that the load is even."""
    heads, width = max(1, round(HEADS * scale)), 64 * max(1, round(WIDTH * scale / 64))
    return ModelSpec("overlap", layers, H, 256, 2 * T, Attention(heads, heads, 128), None, Moe(2, 2, width))


def open_segments(world: launch.World, scale: float) -> RankSegments:
    """Segments that both schedules can drive. Collective."""
    gc.collect()
    cupy.get_default_memory_pool().free_all_blocks()  # the model before this one needs them no more
    spec = model(scale)
    placements = place(spec, world.size)
    held = device.load(Drawn(model(scale, layers=1), 0), held_by(placements, world.rank), BFLOAT16, "device")
    return device.open_segments(world.comm, Unwatched(world.idle), spec,
                                replace(held, layers=held.layers * LAYERS), placements,
                                Sizes(MICRO_BATCHES, MICRO_BATCHES * T, T), Generate(), BFLOAT16,
                                Way(transport="staged", memory="device"), MICRO_BATCHES, overlapped=True,
                                nodes=world.nodes)


def batches() -> list[Batch]:
    """A prompt in each micro-batch, always the same."""
    rng = np.random.default_rng(1)
    return [Batch(rng.integers(0, 256, T).astype(np.int32), np.arange(T, dtype=np.int32), (Span(n, 0, T, 0),),
                  np.array([T - 1], np.int32), np.zeros(1, np.int64), np.full(1, -1, np.int32))
            for n in range(MICRO_BATCHES)]


def step(world: launch.World, take_turns: Callable, segments: RankSegments, work: list[Batch]) -> tuple[float, float]:
    """Seconds of a step and of its exchange, the slowest rank's of the first and the mean of the second. Collective."""
    world.comm.Barrier()
    segments.clock.read()
    begin = time.perf_counter()
    take_turns([layer.step(segments, batch, n) for n, batch in enumerate(work)], segments.clock, segments.watch.idle,
               segments.watch.attend)
    seconds = time.perf_counter() - begin
    exchange = float(segments.clock.read()[STAGES.index("exchange")])
    both = world.comm.allgather((seconds, exchange))
    return max(s for s, _ in both), statistics.mean(e for _, e in both)


def calibrate(world: launch.World, work: list[Batch], scale: float) -> float:
    """How much larger the model must be for its arithmetic to last as long as its exchange, by one of `scale`.
    Collective."""
    segments = open_segments(world, scale)
    step(world, schedule.serial, segments, work)
    seconds, exchange = min(step(world, schedule.serial, segments, work) for _ in range(TRIED))
    segments.free()
    return min(MOST, scale * exchange / (seconds - exchange))


def measure(world: launch.World, work: list[Batch], scale: float) -> Figure:
    """Medians of steps of both schedules that take turns. Collective."""
    segments = open_segments(world, scale)
    for take_turns in (schedule.serial, schedule.overlapped):
        step(world, take_turns, segments, work)
    alone, turns = [], []
    for _ in range(ROUNDS):
        alone.append(step(world, schedule.serial, segments, work))
        turns.append(step(world, schedule.overlapped, segments, work)[0])
    segments.free()
    serial, exchange = (statistics.median(seconds) for seconds in zip(*alone))
    overlapped, shorter = statistics.median(turns), min(exchange, serial - exchange)
    milliseconds = ", ".join(f"{name} {1e3 * span:.0f} ms" for name, span in (
        ("serial", serial), ("exchange", exchange), ("compute", serial - exchange)))
    moe = model(scale).moe
    return Figure("overlap", f"`staged`, overlapped, {RANKS} ranks",
                  f"T {T:,}, H {H}, I {moe.hidden if moe else 0:,}, {LAYERS} layers", overlapped,
                  serial - shorter, (serial - overlapped) / shorter, TARGET, share=True, note=milliseconds)


def rank(out: Path) -> int:
    """Under mpiexec."""
    world = launch.start("gpu")

    def work() -> None:
        launch.check_gpus(world)
        found, work = list[Figure](), batches()
        even = calibrate(world, work, calibrate(world, work, 1))
        for part in PARTS:
            found.append(measure(world, work, min(MOST, even / part)))
            if world.rank == 0:
                tell(out, found)
    return launch.guarded(world, work)


def main() -> int:
    """The ranks."""
    if sys.argv[1] == "rank":
        return rank(Path(sys.argv[2]))
    return subprocess.run([str(Path(sys.executable).with_name("mpiexec")), "-n", str(RANKS), sys.executable, __file__,
                           "rank", sys.argv[1]], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
