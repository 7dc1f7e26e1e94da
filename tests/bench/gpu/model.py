"""Steps of a model of 61 layers on one rank, through the engine: decode behind a long context, and a long prompt.

`model.py FILE`. inputs/seed61-e1.toml is the model, 64 GB of weights that are drawn.
"""

import gc
import sys
import time
from pathlib import Path

import cupy
import floors
import numpy as np
from figures import FILE, Figure, against, tell
from timing import Timed, medians, on_stream

from hpcmoe import gpu, launch, spec_table

gpu.take("gpu")  # before anything below loads MPI

from hpcmoe.array import BFLOAT16  # noqa: E402
from hpcmoe.config import Generate  # noqa: E402
from hpcmoe.device.gemm import Gemm  # noqa: E402
from hpcmoe.engine import device, layer, schedule  # noqa: E402
from hpcmoe.engine.device import RankSegments  # noqa: E402
from hpcmoe.engine.memory import Sizes  # noqa: E402
from hpcmoe.engine.seats import place  # noqa: E402
from hpcmoe.exchange.lane import Way  # noqa: E402
from hpcmoe.exchange.watch import Unwatched  # noqa: E402
from hpcmoe.files.drawn import Drawn  # noqa: E402
from hpcmoe.model.weights import Weights  # noqa: E402
from hpcmoe.spec import ModelSpec  # noqa: E402
from hpcmoe.types import Batch, Span  # noqa: E402

SPEC = FILE.parents[1] / "inputs" / "seed61-e1.toml"
CONTEXT, BATCHES = 1024, (1, 4, 8)
PROMPT = 4096
DECODE_TARGET, PREFILL_TARGET = 1.3, 0.75
STEPS, PROMPTS = 15, 7
WARM = 3
"""Steps of a batch before those that count."""
RATED = 8
"""Layers whose products tell the rate of products."""


def open_segments(world: launch.World, model: ModelSpec, held: Weights, sizes: Sizes) -> RankSegments:
    """All of the model on this rank."""
    return device.open_segments(world.comm, Unwatched(world.idle), model, held, place(model, 1), sizes, Generate(),
                                BFLOAT16, Way(memory="device"), nodes=world.nodes)


def batch(model: ModelSpec, spans: tuple[Span, ...]) -> Batch:
    """Random tokens; the last one of each span asks for the next."""
    token = np.random.default_rng(0).integers(0, model.vocabulary, sum(span.rows for span in spans))
    position = np.concatenate([np.arange(span.cached, span.cached + span.rows) for span in spans])
    wanted = np.array([span.first + span.rows - 1 for span in spans], np.int32)
    return Batch(token.astype(np.int32), position.astype(np.int32), spans, wanted, np.arange(len(spans)),
                 np.full(len(spans), -1, np.int32))


def step(segments: RankSegments, work: Batch) -> float:
    """Seconds until the host has the next tokens."""
    begin = time.perf_counter()
    schedule.serial([layer.step(segments, work)], segments.clock, segments.watch.idle, segments.watch.attend)
    return time.perf_counter() - begin


def decode(world: launch.World, model: ModelSpec, held: Weights) -> list[Figure]:
    """Each batch size, one token a sequence, always the one behind the context."""
    segments, figures = open_segments(world, model, held, Sizes(max(BATCHES), CONTEXT, CONTEXT + 64)), []
    for slot in range(max(BATCHES)):
        step(segments, batch(model, (Span(slot, 0, CONTEXT, 0),)))
    for count in BATCHES:
        work = batch(model, tuple(Span(slot, slot, 1, CONTEXT) for slot in range(count)))
        for _ in range(WARM):
            step(segments, work)
        seconds = medians({"step": lambda work=work: step(segments, work)}, STEPS)["step"]
        figures.append(against("model", "decode", f"batch {count}, context {CONTEXT:,}", seconds,
                               floors.decode(model, count, CONTEXT), DECODE_TARGET))
    segments.free()
    return figures


def products(held: Weights) -> tuple[Timed, float]:
    """What times the products of some layers at the prompt's length, and their FLOPs."""
    weights = [w for one in held.layers[-RATED:]
               for w in (one.attention.qkv, one.attention.o, one.experts[0].gate_up, one.experts[0].down)]
    random, gemm = held.embedding.reshape(-1), Gemm()
    pairs = [(random[:PROMPT * w.shape[1]].reshape(PROMPT, -1), w) for w in weights]

    def work() -> None:
        for x, weight in pairs:
            gemm(x, weight)
    return on_stream(cupy.cuda.Stream(non_blocking=True), work, 1), 2.0 * PROMPT * sum(w.size for w in weights)


def prefill(world: launch.World, model: ModelSpec, held: Weights) -> Figure:
    """One sequence, beside the model's own products."""
    segments = open_segments(world, model, held, Sizes(1, PROMPT, PROMPT))
    whole = batch(model, (Span(0, 0, PROMPT, 0),))
    rated, flops = products(held)
    seconds = medians({"prefill": lambda: step(segments, whole), "products": rated}, PROMPTS, budget=20)
    segments.free()
    rate = flops / seconds["products"]
    floor = floors.prefill_flops(model, PROMPT) / rate
    return Figure("model", "prefill", f"{PROMPT:,} tokens", seconds["prefill"], floor, floor / seconds["prefill"],
                  PREFILL_TARGET, share=True, note=f"of the {rate / 1e12:.0f} TFLOP/s of its products alone")


def measure(world: launch.World, out: Path) -> None:
    """One after the other: their caches need not lie beside each other."""
    launch.check_gpus(world)
    model = spec_table.load(SPEC)
    begin = time.perf_counter()
    held = device.load(Drawn(model, 0), lambda n: [0], BFLOAT16, "device")
    cupy.cuda.Device().synchronize()
    print(f"weights drawn in {time.perf_counter() - begin:.1f} s", flush=True)
    found = decode(world, model, held)
    tell(out, found)
    gc.collect()
    cupy.get_default_memory_pool().free_all_blocks()
    tell(out, [*found, prefill(world, model, held)])


def main() -> int:
    """One rank, without mpiexec."""
    world = launch.start("gpu")
    return launch.guarded(world, lambda: measure(world, Path(sys.argv[1])))


if __name__ == "__main__":
    sys.exit(main())
