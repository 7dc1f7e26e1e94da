"""What a rank needs of memory, before any is taken."""

from dataclasses import dataclass

import numpy as np

from hpcmoe.config import Job
from hpcmoe.exchange.interface import MOST, PIECE
from hpcmoe.exchange.route import trailer_width
from hpcmoe.model import cache, weights
from hpcmoe.placement.plan import linear
from hpcmoe.spec import ModelSpec, Moe
from hpcmoe.types import Placement

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
    """Bytes on the fullest rank."""

    weights: dict[str, int]
    """by part of the model"""
    cache: int
    exchange: int
    """the buffers of both directions under balanced routing; they grow where routing is uneven"""
    requests: int
    """persistent requests and staged pieces, at most"""

    @property
    def total(self) -> int:
        return sum(self.weights.values()) + self.cache + self.exchange + self.requests


def plan_sizes(model: ModelSpec, job: Job, lengths: np.ndarray, ranks: int) -> Sizes:
    """How much each of `ranks` ranks works on at once; lengths `[P]` int64 are those of the prompts."""
    sequences = job.schedule.max_sequences or min(MOST_SEQUENCES, -(-len(lengths) // ranks))
    tokens = job.schedule.max_tokens or min(MOST_TOKENS, sequences * int(lengths.max()))
    new = job.generate.max_new_tokens if job.mode == "generate" else 0
    length = min(model.context, int(lengths.max()) + new)
    return Sizes(min(sequences, tokens), tokens, length)


def plan_memory(model: ModelSpec, job: Job, placement: Placement, sizes: Sizes, weight_size: int,
                value_size: int) -> Memory:
    """Bytes that the fullest rank needs, `weight_size` a weight and `value_size` an activation."""
    fullest = int(np.diff(placement.first).argmax())
    held = weights.size(model, lambda layer: placement.held_by(fullest), weight_size)
    exchange = requests = 0
    if model.moe:
        exchange = 4 * sizes.tokens * model.moe.top_k * model.hidden * value_size
        requests = _requests(model, model.moe, job, placement, sizes.tokens, value_size)
    return Memory(held, cache.size(model, sizes.sequences, sizes.length, value_size), exchange, requests)


def _requests(model: ModelSpec, moe: Moe, job: Job, placement: Placement, tokens: int, value_size: int) -> int:
    """Bytes of all that a job may make beside the buffers of exact counts.

    A ladder of rungs for 1, 2, 4, … rows a peer, with a buffer for each way, is less than four times its largest
    buffer; there is one for each direction of each micro-batch. Staged pieces go through two exchanges, each with
    buffers of its own.
    """
    mode, ranks, answers = job.exchange.mode, placement.ranks, min(moe.top_k, placement.most)
    staged = job.exchange.transport == "staged" or (job.exchange.transport == "auto" and bool(job.probe))
    ladder = 4 if mode == "persistent" or (mode == "auto" and ranks > 1) else 0
    taken = 0
    for rows, trailer in (tokens, trailer_width(placement, moe.top_k)), (tokens * answers, 0):
        row = model.hidden * value_size + 2 * trailer
        largest = ranks * row << max(rows - 1, 0).bit_length()
        if staged:
            taken += 2 * (2 + ladder) * min(largest, max(2 * PIECE, ranks * row))
        else:
            taken += ladder * min(largest, MOST)
    return taken * (2 if job.schedule.mode == "auto" else job.schedule.micro_batches)


def place(model: ModelSpec, ranks: int) -> Placement:
    """Which rank holds which expert, in every layer."""
    return linear(model.experts, ranks)
