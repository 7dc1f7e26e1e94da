"""What a rank needs of memory, before any is taken."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from hpcmoe import array, spec
from hpcmoe.config import Job
from hpcmoe.engine import footprint
from hpcmoe.errors import size
from hpcmoe.exchange.interface import MOST, PIECE
from hpcmoe.exchange.route import trailer_width
from hpcmoe.model import cache, weights
from hpcmoe.model.heads import cut, local
from hpcmoe.placement.plan import with_spare
from hpcmoe.slots import Placements, Shard, fullest, held_by, most, piece, shard_of
from hpcmoe.spec import ModelSpec, Moe, Tensor

CPU_WEIGHT = 4
"""Bytes of a weight on a CPU, whatever the dtype: see `array`."""
MOST_SEQUENCES = 32
"""Sequences per rank, where the job leaves them to be planned."""
MOST_TOKENS = 1024
"""Tokens of a step per rank, where the job leaves them to be planned."""


@dataclass(frozen=True)
class Sizes:
    """How much a rank works on at once."""

    sequences: int
    tokens: int
    """of one step"""
    length: int
    """tokens of the longest sequence, prompt and answer"""


@dataclass(frozen=True)
class Memory:
    """Bytes on the fullest rank: of its GPU where it computes there, else of its host."""

    weights: dict[str, int]
    """by part of the model"""
    cache: int
    exchange: int
    """the buffers of both directions under balanced routing; they grow where routing is uneven"""
    requests: int
    """persistent requests and staged pieces, at most; on a GPU without the pieces"""
    workspace: int = 0
    """on a GPU: activations, and all else (`footprint.workspace`); a CPU's are small beside its weights"""
    staged: int = 0
    """on a GPU: staged pieces, at most; they lie in the host's memory, and are not part of the total"""

    @property
    def total(self) -> int:
        return sum(self.weights.values()) + self.cache + self.exchange + self.requests + self.workspace

    def words(self) -> str:
        """The plan in short."""
        parts = {"weights": sum(self.weights.values()), "keys and values": self.cache,
                 "exchange": self.exchange + self.requests, "workspace": self.workspace}
        return f"{' + '.join(f'{name} {size(count)}' for name, count in parts.items() if count)} = {size(self.total)}"


def plan_sizes(model: ModelSpec, job: Job, lengths: np.ndarray, ranks: int) -> Sizes:
    """How much each rank works on at once, with `ranks` of them in each of the job's groups; lengths `[P]` int64 are
    those of the prompts."""
    sequences = job.schedule.max_sequences or min(MOST_SEQUENCES, -(-len(lengths) // (ranks * job.parallel.data)))
    tokens = job.schedule.max_tokens or min(MOST_TOKENS, sequences * int(lengths.max()))
    new = job.generate.max_new_tokens if job.mode == "generate" else 0
    length = min(model.context, int(lengths.max()) + new)
    return Sizes(min(sequences, tokens), tokens, length)


def plan_memory(model: ModelSpec, job: Job, placements: Placements, sizes: Sizes, memory: str,
                taken: dict[str, int] | None = None) -> Memory:
    """What the fullest rank needs where it computes in `memory`, one of `array.MEMORY`; `taken` are its weights, where
    they are known."""
    shard, team = shard_of(placements, fullest(placements)), job.parallel.attention_tensor
    here, taken = local(model, Shard(0, team)), taken or plan_weights(model, job, placements, memory)
    if memory == "device":
        return _on_device(model, here, job, placements, sizes, taken)
    dtype = array.DTYPES[job.compute.dtype]
    value = dtype.itemsize
    exchange = exchanges_of_team(model, team, sizes.tokens, value)
    requests = 0
    if model.moe:
        both = value + array.answers(dtype, shard.of).itemsize  # there and back
        exchange += exchanges(job) * 2 * sizes.tokens * model.moe.top_k * shard.of * model.hidden * both
        rungs, pieces = _requests(model, model.moe, job, placements, sizes.tokens, dtype)
        requests = pieces if _may_stage(job) else rungs
    return Memory(taken, cache.size(here, team * sizes.sequences, sizes.length, value), exchange, requests)


def plan_weights(model: ModelSpec, job: Job, placements: Placements, memory: str) -> dict[str, int]:
    """Bytes of the fullest rank's weights, by part of the model."""
    full, size = fullest(placements), footprint.tensor if memory == "device" else _on_host
    kept = cut(model, shard_of(placements, full), Shard(0, job.parallel.attention_tensor))
    return weights.size(model, held_by(placements, full), size, kept) | _coming(model, job, placements, size)


def exchanges_of_team(model: ModelSpec, team: int, tokens: int, value: int) -> int:
    """Bytes of the buffers among the ranks of a team, of which each has so many tokens: out and in, of values of the
    compute dtype there, and float32 back."""
    return 2 * team * tokens * model.hidden * (value + 4) if team > 1 else 0


def _on_host(tensor: Tensor) -> int:
    return CPU_WEIGHT * tensor.values


def _coming(model: ModelSpec, job: Job, placements: Placements, taken: Callable[[Tensor], int]) -> dict[str, int]:
    """Bytes of experts that are read while those whose slots they get are still at work: those of one layer."""
    if not model.moe or not job.balance.replan_every:
        return {}
    one = sum(taken(kept) for t in spec.layer_tensors(model, min(model.moe_layers))
              if t.expert == 0 and (kept := piece(t, shard_of(placements, 0))))
    return {"experts to come": one * most(placements)}


def _on_device(model: ModelSpec, here: ModelSpec, job: Job, placements: Placements, sizes: Sizes,
               taken: dict[str, int]) -> Memory:
    """`here` is the model with the heads that a rank has."""
    team = job.parallel.attention_tensor
    parts, scores = micro_batches(job), job.mode == "score" or job.balance.mode == "bias"
    wanted = sizes.tokens if scores else sizes.sequences
    step = footprint.Step(model, placements, sizes.tokens, wanted, team)
    rungs = pieces = 0
    if model.moe:
        rungs, pieces = _requests(model, model.moe, job, placements, sizes.tokens, array.BFLOAT16)
    buffers = exchanges(job) * parts * footprint.exchange(step)
    buffers += footprint.GROWTH * parts * exchanges_of_team(model, team, sizes.tokens, 2)
    return Memory(taken, footprint.kv_cache(here, team * sizes.sequences, sizes.length), buffers,
                  0 if job.exchange.transport == "staged" else rungs, footprint.workspace(step, parts),
                  pieces if _may_stage(job) else 0)


def exchanges(job: Job) -> int:
    """Exchanges that each way of a micro-batch has: a flat one, two hops, or both."""
    return {"twohop": 2, "auto": 3 if job.parallel.ranks_per_node > 1 else 1}.get(job.exchange.mode, 1)


def micro_batches(job: Job) -> int:
    """Parts of a step, at most."""
    return 2 if job.schedule.mode == "auto" else job.schedule.micro_batches


def _may_stage(job: Job) -> bool:
    return job.exchange.transport == "staged" or (job.exchange.transport == "auto" and bool(job.probe))


def _requests(model: ModelSpec, moe: Moe, job: Job, placements: Placements, tokens: int,
              dtype: np.dtype) -> tuple[int, int]:
    """Bytes of all that a job may make beside the buffers of exact counts: of rungs, or of staged pieces.

    A ladder of rungs for 1, 2, 4, … rows a peer, with a buffer for each way, is less than four times its largest
    buffer; there is one for each direction of each micro-batch. Staged pieces go through two exchanges, each with
    buffers of its own.
    """
    mode, ranks, answers = job.exchange.mode, placements[0].ranks, min(moe.top_k, most(placements))
    ladder = 4 if mode == "persistent" or (mode == "auto" and ranks > 1) else 0
    rungs = pieces = 0
    home = array.answers(dtype, placements[0].shards)
    for rows, trailer, kind in ((tokens, trailer_width(most(placements), moe.top_k), dtype),
                                (tokens * answers, 0, home)):
        row = model.hidden * kind.itemsize + 2 * trailer
        largest = ranks * row << max(rows - 1, 0).bit_length()
        rungs += ladder * min(largest, MOST)
        pieces += 2 * (2 + ladder) * min(largest, max(2 * PIECE, ranks * row))
    return rungs * micro_batches(job), pieces * micro_batches(job)


def room(job: Job, placements: Placements) -> Placements:
    """The placements that memory is planned for: with slots for the experts of a rank that dies, where others are to
    take them over."""
    return with_spare(placements) if job.checkpoint.on_failure == "shrink" and placements[0].ranks > 1 else placements
