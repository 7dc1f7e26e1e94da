"""Random routings for whole models: what tests force upon the gate, and what they put through it."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from hypothesis import strategies as st
from models import TINY, batch

from hpcmoe import reference
from hpcmoe.engine.batch import split
from hpcmoe.spec import ModelSpec
from hpcmoe.types import Batch, Route

SKEWS = ("even", "one", "hot", "last")
"""Any expert; all tokens to the same K; one expert nearly always among the K; only the last K experts."""
SLOTS = 3
"""Sequences of a rank."""
MOST = 40
"""Tokens of a rank in a step."""


@dataclass(frozen=True)
class Example:
    """Steps in a row, and how their tokens are routed."""

    steps: tuple[tuple[int, ...], ...]
    """tokens of each rank in each step"""
    top_k: int
    skew: str
    parts: int = 1
    """micro-batches"""
    seed: int = 0

    def tokens(self, rank: int, slot: int) -> np.ndarray:
        """All that a sequence will have. No two rows of a rank are alike: sequences begin differently, none repeats."""
        order = np.random.default_rng([self.seed, rank, slot]).permutation(TINY.vocabulary)
        return np.concatenate([[slot], order[order != slot]]).astype(np.int32)

    def batches(self, rank: int) -> list[list[Batch]]:
        """The micro-batches of each step of a rank: its tokens go on with its sequences, as even as can be."""
        cached, steps = [0] * SLOTS, []
        for step in self.steps:
            shares = [(step[rank] + slot) // SLOTS for slot in range(SLOTS)]
            pieces = [(slot, at, self.tokens(rank, slot)[at:at + n].tolist())
                      for slot, (at, n) in enumerate(zip(cached, shares)) if n]
            steps.append(split(batch(*pieces), self.parts))
            cached = [at + n for at, n in zip(cached, shares)]
        return steps


def examples(ranks: int, experts: int, most_parts: int = 3) -> st.SearchStrategy[Example]:
    """Of up to three steps."""
    rows = st.one_of(st.just(0), st.integers(0, 4), st.integers(0, MOST if ranks <= 4 else MOST // 4))
    step = st.lists(rows, min_size=ranks, max_size=ranks).map(tuple)
    return st.builds(Example, st.lists(step, min_size=1, max_size=3).map(tuple),
                     st.one_of(st.integers(1, min(experts, 4)), st.just(experts)), st.sampled_from(SKEWS),
                     st.integers(1, most_parts), st.integers(0, 999))


def named(ranks: int, experts: int) -> list[Example]:
    """What must not be left to chance."""
    few, everyone = min(2, experts), tuple(3 + rank % 2 for rank in range(ranks))
    one_token, nothing = tuple(int(rank == ranks - 1) for rank in range(ranks)), (0,) * ranks
    half = tuple(7 * (rank % 2) for rank in range(ranks))
    return [Example((everyone, one_token, nothing), 1, "one", 2), Example((half,), experts, "even", 1),
            Example(tuple(tuple((size + rank) % 19 for rank in range(ranks)) for size in (1, 9, 18, 2)), few, "hot", 2)]


@dataclass
class Forced:
    """A gate whose choice depends on the bytes of each row alone, and so not on who asks, nor when."""

    example: Example
    seen: list[tuple[np.ndarray, Route]] = field(default_factory=list)
    """what it was asked and what it said"""

    def __call__(self, moe, weights, x: np.ndarray) -> Route:
        """In the place of `model.gate.gate`."""
        E, K, skew = moe.experts, self.example.top_k, self.example.skew
        names = np.array([zlib.crc32(row.tobytes(), self.example.seed) for row in x], np.uint64)[:, None]
        rank, favourite = _scattered(names, E), self.example.seed % E
        if skew == "one":
            rank[:] = (np.arange(E) - favourite) % E
        elif skew == "last":
            rank[:] = -np.arange(E)
        elif skew == "hot":
            rank[:, favourite] *= rank[:, favourite] > 0.9
        weight = 0.1 + _scattered(names + np.uint64(1), K)
        route = Route(np.argsort(rank, axis=1, kind="stable")[:, :K].astype(np.int32),
                      (weight / weight.sum(axis=1, keepdims=True)).astype(np.float32))
        self.seen.append((x.copy(), route))
        return route

    def oracle(self, model: ModelSpec, at: reference.Read, x: np.ndarray, r: reference.Round) -> np.ndarray:
        """In the place of `reference.moe`: every row goes where the gate sent the nearest one that it saw."""
        rows = np.concatenate([rows for rows, _ in self.seen])
        expert = np.concatenate([route.expert for _, route in self.seen])
        weight = np.concatenate([route.weight for _, route in self.seen])
        out = np.zeros_like(x)
        for t, row in enumerate(x):
            apart = np.abs(rows - row).max(axis=1)
            assert apart.min() < 1e-4, f"no row like this one went through the gate: {apart.min():.1e}"
            for e, w in zip(expert[apart.argmin()], weight[apart.argmin()]):
                out[t] += w * reference.swiglu(row[None], at(f"experts/{e:03d}/gate_up"), at(f"experts/{e:03d}/down"),
                                               r)[0]
        return out


def _scattered(names: np.ndarray, width: int) -> np.ndarray:
    """`[T, width]` float64 from 0 to 1 that tell nothing of the names, `[T, 1]` uint64, but follow from them."""
    mixed = (names + np.arange(1, width + 1, dtype=np.uint64) * np.uint64(1 << 32)) * np.uint64(0x9E3779B97F4A7C15)
    for shift in (29, 32):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(0xBF58476D1CE4E5B9)
    return (mixed >> np.uint64(11)) / 2.0**53


def sequences(example: Example, rank: int, steps: Sequence[Sequence[np.ndarray]]) -> dict[int, np.ndarray]:
    """The logits `[n, V]` of each sequence of a rank, from those of each micro-batch of each step."""
    found: dict[int, list[np.ndarray]] = {}
    for parts, logits in zip(example.batches(rank), steps):
        for part, rows in zip(parts, logits):
            for span in part.spans:
                found.setdefault(span.slot, []).append(rows[span.first:span.first + span.rows])
    return {slot: np.concatenate(pieces) for slot, pieces in found.items()}
