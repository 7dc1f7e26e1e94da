"""By rows and by links, one layer at a time.

Flat: each slot costs each rank seconds (`cost.holding`), and the slowest rank is made as quick as can be: exactly where
a rank holds one slot, else by a search. Two hops: slots go to nodes so that tokens touch the fewest (`group`), then so
that the slowest node is quick (`even`), as far as tokens may touch more for it; and in each node to ranks as in flat
exchange.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from hpcmoe.files.plan import Weights
from hpcmoe.placement import plan
from hpcmoe.placement.assign import assign, ordered
from hpcmoe.placement.cost import holding, paces, terms, travelling
from hpcmoe.placement.demand import Demand, Spread, elsewhere
from hpcmoe.placement.even import Price, evened
from hpcmoe.placement.group import Room, granted, group
from hpcmoe.placement.replicas import SAME, scan
from hpcmoe.placement.touch import Tokens, cost
from hpcmoe.slots import Placement, Topology, members

NEAR = 1.01
"""Where nodes come first tokens may touch so many times the fewest that were found, to relieve the slowest node."""
NEARS = (1.1, np.inf)
"""Where the slowest rank comes first these are tried too."""


@dataclass(frozen=True)
class Layer:
    """What is decided by."""

    demand: Demand
    topology: Topology
    weights: Weights
    capacity: int
    exchange: str
    layers: int
    """of the plan, which share the work that is granted"""
    seed: tuple[int, int]

    @property
    def hops(self) -> bool:
        """Whether rows go by way of nodes."""
        return self.exchange == "twohop" and self.topology.nodes > 1

    @cached_property
    def linear(self) -> Placement:
        return plan.linear(self.demand.experts, self.topology.ranks)

    @cached_property
    def single(self) -> "Slots":
        """A slot for each expert."""
        return Slots(self, self.linear.rank.astype(np.int64), self.linear.expert.astype(np.int64))

    @cached_property
    def more(self) -> "Slots":
        """As many replicas as make the fullest rank's rows fewest."""
        return Slots(self, *scan(self.demand.rows, self.topology.ranks, self.capacity))

    @property
    def replicates(self) -> bool:
        return len(self.more.expert) > self.demand.experts

    def seconds(self, placement: Placement) -> tuple[float, float]:
        """Of the slowest rank, and of all ranks together."""
        spread = Spread(self.demand, placement, self.topology)
        found = terms(spread.computed, travelling(spread, self.exchange), self.topology, self.weights).sum(axis=0)
        return float(found.max()), float(found.sum())

    def touches(self, placement: Placement) -> tuple[float, ...]:
        """How many nodes other than its own a token touches."""
        return (Spread(self.demand, placement, self.topology).crossing,)


def best(layer: Layer) -> Placement:
    """Without replicas, or with `Layer.more`: what is quicker; `plan.linear` where a slot for each expert is no better.

    In two hops that is better with which tokens touch fewer nodes; else what is quicker.
    """
    found = layer.single.placed(NEAR)
    measure = layer.touches if layer.hops else layer.seconds
    if not _less(measure(found), measure(layer.linear)):
        found = layer.linear
    if layer.replicates:
        found = _quicker(layer, found, layer.more.placed(NEAR))
    return found


def quickest(layer: Layer) -> Placement:
    """As `best`, but in two hops too all is judged by the slowest rank, whatever nodes tokens touch for it."""
    nears = (NEAR, *NEARS) if layer.hops else (NEAR,)
    found = _quicker(layer, layer.linear, *(layer.single.placed(near) for near in nears))
    if layer.replicates:
        found = _quicker(layer, found, *(layer.more.placed(near) for near in nears))
    return found


def _quicker(layer: Layer, found: Placement, *others: Placement) -> Placement:
    """The first one of the quickest."""
    for other in others:
        found = other if _less(layer.seconds(other), layer.seconds(found)) else found
    return found


def _less(a: Sequence[float], b: Sequence[float]) -> bool:
    """Whether the first number that differs is smaller in `a`."""
    differs = [x < y for x, y in zip(a, b) if abs(x - y) > SAME * max(abs(x), abs(y))]
    return bool(differs) and differs[0]


@dataclass(frozen=True)
class Slots:
    """Of a layer, and a way to place them."""

    layer: Layer
    rank: np.ndarray
    """`[S]` int64"""
    expert: np.ndarray
    """`[S]` int64"""

    @cached_property
    def copies(self) -> np.ndarray:
        """`[S]` int64: slots that hold the same expert."""
        return np.bincount(self.expert)[self.expert]

    @cached_property
    def cost(self) -> np.ndarray:
        """`[S, R]` float64: seconds of each slot on each rank."""
        layer = self.layer
        return (holding(layer.demand, layer.topology, layer.weights, layer.exchange)[self.expert]
                / self.copies[:, None])

    @cached_property
    def room(self) -> Room:
        node, N = self.layer.topology.node, self.layer.topology.nodes
        return Room(self.expert, np.bincount(node[self.rank], minlength=N), np.bincount(node, minlength=N))

    @cached_property
    def tokens(self) -> Tokens:
        """The sampled ones, as they touch nodes."""
        demand, topology = self.layer.demand, self.layer.topology
        weight = elsewhere(topology) if demand.home is None else np.ones(topology.nodes)
        return Tokens(dealt(demand.expert, self.expert), len(self.expert), weight, demand.home)

    @cached_property
    def grouped(self) -> np.ndarray:
        """`[S]` int64: the node of each slot with which tokens touch the fewest."""
        first = self.layer.topology.node[self.rank].astype(np.int64)
        return group(self.tokens, self.room, first, granted(self.layer.layers), self.layer.seed)

    def placed(self, near: float) -> Placement:
        """Where tokens touch no more than `near` times the fewest nodes that were found."""
        layer, R = self.layer, self.layer.topology.ranks
        if not layer.hops:
            return ordered(R, self._assigned(np.arange(len(self.expert)), np.arange(R), 1), self.expert)
        node, rank = self._nodes(near), np.empty(len(self.expert), np.int64)
        for number, ranks in enumerate(members(layer.topology.node)):
            slots = np.flatnonzero(node == number)
            if len(slots):
                rank[slots] = self._assigned(slots, ranks, layer.topology.nodes)
        return ordered(R, rank, self.expert)

    def _assigned(self, slots: np.ndarray, ranks: np.ndarray, parts: int) -> np.ndarray:
        """Some slots to some ranks: one of so many parts of the layer."""
        layer = self.layer
        return ranks[assign(self.cost[np.ix_(slots, ranks)], self.expert[slots], layer.capacity, parts * layer.layers,
                            layer.seed)]

    def _nodes(self, near: float) -> np.ndarray:
        """`[S]` int64: the node of each slot, when the slowest one was relieved."""
        fewest = cost(self.tokens, self.grouped)
        before = cost(self.tokens, self.layer.topology.node[self.rank].astype(np.int64))
        most = min(near * fewest, max(before, fewest)) if near == NEAR else near * fewest
        return evened(self.tokens, self.room, self.grouped, most, self._price())

    def _price(self) -> Price:
        layer, demand = self.layer, self.layer.demand
        near, far = (layer.weights.row * pace for pace in paces(layer.topology))
        rows, away = demand.rows[self.expert] / self.copies, float(elsewhere(layer.topology).mean())
        each = demand.rows.sum() / demand.expert.size  # tokens of a step for each that is sampled
        return Price(rows * (layer.weights.compute + 2 * near), rows * away * far, each * far)


def dealt(chosen: np.ndarray, expert: np.ndarray) -> np.ndarray:
    """`[n, K]` int64: a slot for each expert of sampled tokens, `chosen` `[n, K]`: its replicas take turns.

    expert `[S]`: of each slot.
    """
    order, copies = np.argsort(expert, kind="stable"), np.bincount(expert)
    begins = np.cumsum(copies) - copies
    flat = chosen.ravel()
    by_expert, counts = np.argsort(flat, kind="stable"), np.bincount(flat, minlength=len(copies))
    nth = np.empty(len(flat), np.int64)
    nth[by_expert] = np.arange(len(flat)) - np.repeat(np.cumsum(counts) - counts, counts)
    return order[begins[flat] + nth % copies[flat]].reshape(chosen.shape)
