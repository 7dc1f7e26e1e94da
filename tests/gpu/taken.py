"""`python taken.py MODEL MODE JOBMODE SHARDS`: what a rank's arrays and its GPU came to, beside the plan, as JSON.

The first steps are full, each in one micro-batch; those behind them are cut at random.
"""

import json
import sys
from dataclasses import replace

from hpcmoe import gpu

found = gpu.take("gpu")
if found.failure:
    sys.exit(found.failure)
import cupy  # noqa: E402
import numpy as np  # noqa: E402
from mpi4py import MPI  # noqa: E402

from hpcmoe import array, launch  # noqa: E402
from hpcmoe.config import Exchange, Generate, Job, Parallel, Schedule  # noqa: E402
from hpcmoe.engine import device, footprint, layer, schedule  # noqa: E402
from hpcmoe.engine.memory import Sizes, plan_memory  # noqa: E402
from hpcmoe.engine.seats import place  # noqa: E402
from hpcmoe.exchange.lane import Way  # noqa: E402
from hpcmoe.exchange.watch import Unwatched  # noqa: E402
from hpcmoe.files.drawn import Drawn  # noqa: E402
from hpcmoe.model.heads import cut  # noqa: E402
from hpcmoe.slots import Shard, held_by, shard_of  # noqa: E402
from hpcmoe.spec import Attention, Dense, Latent, ModelSpec, Moe  # noqa: E402
from hpcmoe.types import Batch, Span  # noqa: E402

MODEL = ModelSpec("planned", 4, 1024, 32000, 4096, Attention(16, 4, 64, qk_norm="head"), Dense(2816, 1),
                  Moe(4, 2, 1408, shared_hidden=1408, shared_gate=True))
MODELS = {"one": replace(MODEL, moe=Moe(1, 1, 2816)), "some": MODEL,
          "dense": replace(MODEL, moe=None, dense=Dense(2816, 4)),
          "latent": replace(MODEL, attention=Attention(32, 32, 64, latent=Latent(512, 64, 64, 384))),
          "sinks": replace(MODEL, attention=Attention(16, 4, 64, sinks=True, bias=True, output_bias=True),
                           moe=Moe(4, 2, 1408, expert_bias=True, limit=7))}
SLOTS, TOKENS, LENGTH = 8, 2048, 1024


def batch(rows: list[tuple[int, int]], scored: bool) -> Batch:
    """Tokens that begin sequences: (slot, tokens) of each."""
    ends = np.cumsum([0, *(count for _, count in rows)])
    spans = tuple(Span(slot, int(first), count, 0) for (slot, count), first in zip(rows, ends))
    position = np.concatenate([np.zeros(0, np.int32), *(np.arange(count) for _, count in rows)]).astype(np.int32)
    wanted = np.arange(ends[-1]) if scored else ends[1:] - 1
    token = np.random.default_rng(1).integers(0, MODEL.vocabulary, len(position)).astype(np.int32)
    return Batch(token, position, spans, wanted.astype(np.int32), np.zeros(len(wanted), np.int64),
                 np.full(len(wanted), 5 if scored else -1, np.int32))


def steps(scored: bool) -> list[list[Batch]]:
    """Two micro-batches each."""
    rng, part = np.random.default_rng(MPI.COMM_WORLD.rank), TOKENS // SLOTS
    whole = batch([(slot, part) for slot in range(SLOTS)], scored)
    some = [[batch([(slot, int(rng.integers(1, part))) for slot in slots], scored)
             for slots in (range(4), range(4, 8))] for _ in range(6)]
    return [[whole, batch([], scored)], [batch([], scored), whole], *some]


def main(name: str, mode: str, answers: str, shards: str) -> None:
    """Collective."""
    comm, model = MPI.COMM_WORLD, MODELS[name]
    job = Job("m", "p", "o", mode=answers, exchange=Exchange(mode=mode, transport="device"),
              schedule=Schedule("serial", 2), parallel=Parallel(expert_tensor=int(shards)))
    placements, sizes = place(model, comm.size, job), Sizes(SLOTS, TOKENS, LENGTH)
    memory = plan_memory(model, job, placements, sizes, "device")
    pool, before = cupy.cuda.MemoryPool(), gpu.free_memory()
    cupy.cuda.set_allocator(pool.malloc)
    kept = cut(model, shard_of(placements, comm.rank), Shard())
    held = device.load(Drawn(model, 0), held_by(placements, comm.rank), array.BFLOAT16, "device", kept)
    segments = device.open_segments(comm, Unwatched(launch.rest), model, held, placements, sizes, Generate(),
                                    array.BFLOAT16, Way(mode, memory="device"), 2)
    for batches in steps(answers == "score"):
        schedule.serial([layer.step(segments, part, n) for n, part in enumerate(batches)], segments.clock, launch.rest,
                        launch.rest)
    cupy.cuda.Device().synchronize()
    arrays = comm.allreduce(pool.total_bytes(), MPI.MAX)
    figures = {"arrays": arrays, "gpu": before - gpu.free_memory(), "total": memory.total, "planned": memory.words(),
               "weights": sum(memory.weights.values()), "cache": memory.cache, "overhead": footprint.OVERHEAD}
    segments.free()
    if comm.rank == 0:
        print(json.dumps(figures))


if __name__ == "__main__":
    main(*sys.argv[1:])
