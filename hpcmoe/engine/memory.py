"""What a rank needs of memory, before any is taken."""

from dataclasses import dataclass

import numpy as np

from hpcmoe.config import Job
from hpcmoe.model import cache, weights
from hpcmoe.placement.plan import linear
from hpcmoe.spec import ModelSpec
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

    @property
    def total(self) -> int:
        return sum(self.weights.values()) + self.cache + self.exchange


def plan_sizes(model: ModelSpec, job: Job, lengths: np.ndarray, ranks: int) -> Sizes:
    """How much each of `ranks` ranks works on at once; lengths `[P]` int64 are those of the prompts."""
    sequences = job.schedule.max_sequences or min(MOST_SEQUENCES, -(-len(lengths) // ranks))
    tokens = job.schedule.max_tokens or min(MOST_TOKENS, sequences * int(lengths.max()))
    new = job.generate.max_new_tokens if job.mode == "generate" else 0
    length = min(model.context, int(lengths.max()) + new)
    return Sizes(min(sequences, tokens), tokens, length)


def plan_memory(model: ModelSpec, placement: Placement, sizes: Sizes, weight_size: int, value_size: int) -> Memory:
    """Bytes that the fullest rank needs, `weight_size` a weight and `value_size` an activation."""
    fullest = int(np.diff(placement.first).argmax())
    held = weights.size(model, lambda layer: placement.held_by(fullest), weight_size)
    exchange = 0
    if model.moe:
        exchange = 4 * sizes.tokens * model.moe.top_k * model.hidden * value_size
    return Memory(held, cache.size(model, sizes.sequences, sizes.length, value_size), exchange)


def place(model: ModelSpec, ranks: int) -> Placement:
    """Which rank holds which expert, in every layer."""
    return linear(model.experts, ranks)
