"""How long a step takes as one micro-batch, and as two that take turns: by what `schedule.mode = "auto"` cuts."""

from dataclasses import replace
from itertools import pairwise

import numpy as np

from hpcmoe import array
from hpcmoe.config import Balance, Generate, Job, Parallel
from hpcmoe.engine import device, layer, schedule
from hpcmoe.engine.batch import split
from hpcmoe.engine.memory import Sizes
from hpcmoe.engine.seats import place
from hpcmoe.engine.together import heads_of, split_of
from hpcmoe.exchange import tune
from hpcmoe.exchange.lane import Way
from hpcmoe.exchange.watch import Unwatched
from hpcmoe.files.drawn import Drawn
from hpcmoe.launch import World
from hpcmoe.model.heads import cut
from hpcmoe.slots import held_by, shard_of
from hpcmoe.spec import ModelSpec
from hpcmoe.types import Batch, Cuts, Span

LAYERS = 2
"""Layers with experts of the model that steps are timed with."""
SEQUENCES = 32
"""of a timed step at most, each a part of its tokens"""
ROUNDS = 5


def measure_cuts(world: World, model: ModelSpec, job: Job, way: Way, most: int) -> Cuts:
    """Steps of 1, 4, 16, … tokens on each rank, `most` at most, through a few of the model's layers. Collective."""
    first = min(model.moe_layers, default=0)
    shallow = replace(model, layers=min(model.layers, first + LAYERS))
    parallel = Parallel(expert_tensor=job.parallel.expert_tensor, attention_tensor=job.parallel.attention_tensor)
    in_order = replace(job, parallel=parallel, balance=Balance())
    team = split_of(world.comm, parallel.attention_tensor)
    dtype, placements = array.DTYPES[job.compute.dtype], place(shallow, world.size, in_order)
    held = device.load(Drawn(shallow, 0), held_by(placements, world.rank), dtype, way.memory,
                       cut(shallow, shard_of(placements, world.rank), heads_of(team)))
    rows = [4 ** power for power in range(most.bit_length()) if 4 ** power <= most]
    open_both = {}
    for parts in (1, 2):
        segments = device.open_segments(world.comm, Unwatched(world.idle), shallow, held, placements,
                                        Sizes(SEQUENCES, most, -(-most // SEQUENCES)), Generate(), dtype, way, parts,
                                        overlapped=parts > 1, split=team)
        open_both[parts] = segments, schedule.overlapped if parts > 1 else schedule.serial
    seconds = []
    for count in rows:
        def step(parts: int, batch: Batch = batch_of(count, shallow)) -> None:
            segments, take_turns = open_both[parts]
            take_turns([layer.step(segments, part, n) for n, part in enumerate(split(batch, parts))], segments.clock,
                       world.idle, world.idle)
        contest = {"whole": lambda: step(1), "halves": lambda: step(2)}
        tune.medians(world.comm, world.idle, contest, 1)
        seconds.append(tune.medians(world.comm, world.idle, contest, ROUNDS))
    for segments, _ in open_both.values():
        segments.free()
    return Cuts(np.array(rows), *(np.array([s[name] for s in seconds]) for name in ("whole", "halves")))


def batch_of(tokens: int, model: ModelSpec) -> Batch:
    """`tokens` tokens of up to `SEQUENCES` sequences that begin."""
    ends = np.linspace(0, tokens, min(tokens, SEQUENCES) + 1).astype(int)
    spans = tuple(Span(n, int(a), int(b - a), 0) for n, (a, b) in enumerate(pairwise(ends)))
    position = np.concatenate([np.arange(span.rows) for span in spans]).astype(np.int32)
    token = np.random.default_rng(1).integers(0, model.vocabulary, tokens).astype(np.int32)
    last = np.array([span.first + span.rows - 1 for span in spans], np.int32)
    return Batch(token, position, spans, last, np.zeros(len(spans), np.int64), np.full(len(spans), -1, np.int32))
