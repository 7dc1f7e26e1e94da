"""Where tokens are taken to go: how likely each expert is, drawn rows of each, and which ranks are alike."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hpcmoe.errors import InputError
from hpcmoe.slots import Placement, Placements, Routing
from hpcmoe.spec import Moe

DRAWN = 1 << 14
"""Tokens by which it is found how often one has two of its experts on one rank or node."""
EXACT = 8
"""Ranks up to which each is simulated by itself."""
BINS = 4
"""Classes of ranks, where there are more: the fullest one of each layer, and those behind it in parts of equal size."""


@dataclass(frozen=True)
class Demand:
    """What tokens ask for in each layer with experts."""

    chosen: np.ndarray
    """`[layers, E]` float64: how likely a token goes to each expert; K in all"""
    sample: np.ndarray
    """`[n, K]` int64: the experts of some tokens of the first such layer"""

    def merged(self, unit: np.ndarray) -> float:
        """Rows per answer where a token sends one to each unit; unit `[E]`: of each expert's first slot."""
        places = np.sort(unit[self.sample], axis=1)
        return float(1 + (places[:, 1:] != places[:, :-1]).sum(axis=1).mean()) / places.shape[1]


NONE = Demand(np.zeros((0, 1)), np.zeros((0, 1), np.int64))
"""Of a dense model."""


def skewed(moe: Moe, layers: int, zipf: float, seed: int) -> Demand:
    """Experts whose popularity is in proportion to 1, 2^-s, 3^-s, …, in another order in each layer; s = 0: uniform.

    K different ones of each token are drawn by Gumbel's trick.
    """
    chance = np.random.default_rng(seed)
    E, K = moe.experts, moe.top_k
    score = -zipf * np.log(np.arange(1, E + 1)) + chance.gumbel(size=(DRAWN, E))
    sample = np.argpartition(-score, K - 1, axis=1)[:, :K].astype(np.int64)
    likely = np.bincount(sample.ravel(), minlength=E) / DRAWN if zipf else np.full(E, K / E)
    orders = [chance.permutation(E) for _ in range(layers)]
    first = np.argsort(orders[0]) if layers else np.arange(E)  # expert by its place in the order
    return Demand(np.stack([likely[order] for order in orders]) if layers else np.zeros((0, E)), first[sample])


def traced(routing: Routing, moe: Moe, moe_layers: Sequence[int], where: str) -> Demand:
    """What a run counted. Raises `InputError` where it was of another model."""
    if routing.load.shape[2] != moe.experts or not all(
            layer < len(routing.load) and routing.load[layer].any() for layer in moe_layers):
        raise InputError(f"{where} was of a model with other layers or experts: give a run of this model")
    rows = routing.load[list(moe_layers)].sum(axis=1).astype(np.float64)
    chosen = np.minimum(moe.top_k * rows / rows.sum(axis=1, keepdims=True), 1.0)
    expert = routing.expert[:, moe_layers[0]].astype(np.int64)
    sample = expert[(expert >= 0).all(axis=1)]
    if len(sample) == 0 or sample.shape[1] != moe.top_k:
        raise InputError(f"{where} has no sampled tokens of {moe.top_k} experts each: give a run of this model")
    return Demand(chosen, sample)


@dataclass(frozen=True)
class Classes:
    """Ranks that are simulated as one. Class 0 of `slowed` ranks first, then the rest by their rows in each layer."""

    ranks: int
    of: np.ndarray
    """`[C]` int64: ranks of each class"""
    slow: np.ndarray
    """`[C]` float64: how many times as long its arithmetic takes"""
    slowed: int
    exact: bool
    """whether each rank is a class"""

    def __len__(self) -> int:
        return len(self.of)

    def means(self, order: np.ndarray, values: np.ndarray) -> np.ndarray:
        """`[C]`: of values `[R]` in the classes; order `[R]` as `order` gives it."""
        if self.exact:
            return values
        return np.add.reduceat(values[order], np.cumsum(self.of) - self.of) / self.of

    def order(self, rows: np.ndarray) -> np.ndarray:
        """`[R]`: the slowed ranks, then all others, the fullest first; rows `[R]`."""
        return np.concatenate([np.arange(self.slowed), self.slowed + np.argsort(-rows[self.slowed:], kind="stable")])


def classes(ranks: int, slowed: int, factor: float, even: bool = False) -> Classes:
    """`slowed` ranks take `factor` times as long; `even` where all have the same rows."""
    if ranks <= EXACT and not even:
        slow = np.where(np.arange(ranks) < slowed, factor, 1.0)
        return Classes(ranks, np.ones(ranks, np.int64), slow, slowed, True)
    rest = ranks - slowed
    bins = [rest] if even or rest < 2 else [1, *_parts(rest - 1, min(BINS - 1, rest - 1))]
    of = np.array([slowed, *bins] if slowed else bins, np.int64)
    of = of[of > 0]
    slow = np.ones(len(of))
    slow[:bool(slowed)] = factor
    return Classes(ranks, of, slow, slowed, False)


def _parts(count: int, parts: int) -> list[int]:
    return [len(part) for part in np.array_split(np.arange(count), parts)]


@dataclass(frozen=True)
class Held:
    """A layer's slots, of whole experts on groups of ranks."""

    expert: np.ndarray
    """`[S]` int64: in each slot"""
    copies: np.ndarray
    """`[S]`: of that expert"""
    rank: np.ndarray
    """`[S]`: the first one of the group that has the slot"""


def held(placements: Placements, layer: int) -> Held:
    """Who has what in a layer."""
    placement: Placement = placements[layer]
    expert = placement.expert.astype(np.int64)
    return Held(expert, placement.copies[expert].astype(np.float64), placement.rank.astype(np.int64))


def drawn(chance: np.random.Generator, demand: Demand, layer: int, tokens: int, even: bool) -> np.ndarray:
    """`[E]` float64: rows that so many tokens send to each expert of the `layer`-th layer with experts, K each in all:
    as many as are expected where `even`, else drawn."""
    likely = demand.chosen[layer]
    rows = tokens * likely
    if not even:
        drawn = chance.binomial(tokens, np.minimum(likely, 1.0)).astype(np.float64)
        rows = drawn * (rows.sum() / drawn.sum()) if drawn.any() else rows
    return rows
