"""Rows and bytes of one layer of one micro-batch, by class of ranks."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from hpcmoe.exchange.route import trailer_width
from hpcmoe.exchange.route_far import far_width
from hpcmoe.placement.adapt import adapted
from hpcmoe.predict import cost, demand, flow
from hpcmoe.predict.demand import Classes, Demand
from hpcmoe.predict.flow import Flow, Move, Nodes
from hpcmoe.predict.layout import Layout
from hpcmoe.predict.machine import Hardware
from hpcmoe.predict.shares import Expected, Shares, shares
from hpcmoe.slots import Placement, most
from hpcmoe.spec import ModelSpec


@dataclass(frozen=True)
class Journey:
    """One direction of an exchange, by class `[C]`."""

    hops: tuple[Move, ...]
    sent: np.ndarray
    """`[C, len(CLASSES)]` int64 bytes of rows, padding left out"""
    rows: np.ndarray
    """`[C]` rows that leave a rank"""


@dataclass(frozen=True)
class LayerRows:
    """What a rank of each class has to do in a layer, `[C]` each where nothing else is said."""

    there: Journey
    home: Journey
    received: np.ndarray
    """rows that come"""
    computed: np.ndarray
    """answers that it gives"""
    experts: np.ndarray
    """`[6, C]`: the fields of a `cost.Work` of its experts, one after another"""


@dataclass
class Drawn:
    """Draws the rows of each layer, for ranks that each have as many tokens."""

    model: ModelSpec
    hw: Hardware
    layout: Layout
    demand: Demand
    classes: Classes
    seed: int
    even: bool
    """as many rows as are expected, instead of drawn ones"""

    def __post_init__(self) -> None:
        self.placements, self._chance = self.layout.placements(self.model), np.random.default_rng(self.seed)
        self._kept: dict[tuple[int, int], LayerRows] = {}
        self._settled: dict[int, Placement] = {}
        self._shares: dict[int, Shares] = {}
        self._slots: dict[tuple[int, int], Expected] = {}
        first = demand.held(self.placements, self.model.moe_layers[0]) if self.model.moe_layers else None
        if first:
            rank = np.empty(self.model.experts, np.int64)
            rank[first.expert[::-1]] = first.rank[::-1]
            self.once_a_rank = self.demand.merged(rank)
            self.once_a_node = self.demand.merged(self.at.node[rank])

    @cached_property
    def at(self) -> Nodes:
        """Ranks of one group, on nodes."""
        per_node = self.layout.job.parallel.ranks_per_node or self.hw.links.ranks_per_node
        return flow.nodes(self.layout.group, per_node)

    @property
    def hops(self) -> bool:
        """Whether rows travel by way of relays."""
        return self.layout.job.exchange.mode == "twohop" and self.at.many and self.layout.group > self.at.size[0]

    def __call__(self, layer: int, number: int, tokens: int) -> LayerRows:
        """Of `tokens` tokens on each rank; `number` is the layer's among those with experts."""
        key = (number, tokens)
        if key in self._kept:
            return self._kept[key]
        rows = demand.drawn(self._chance, self.demand, number, tokens * self.layout.group, self.even)
        found = self._spread(rows, tokens, self._expected(layer, number, tokens))
        if self.even:
            self._kept[key] = found
        return found

    def _placement(self, layer: int, number: int) -> Placement:
        """With `balance.replan_every`, what that makes of a load that stays as it is."""
        placement = self.placements[layer]
        if not self.layout.job.balance.replan_every:
            return placement
        if number not in self._settled:
            found = adapted(placement.grouped, self.demand.chosen[number])
            self._settled[number] = found.cut(placement.shards) if placement.shards > 1 else found
        return self._settled[number]

    def _expected(self, layer: int, number: int, tokens: int) -> Expected:
        """Of the slots of a layer."""
        placement = self._placement(layer, number)
        if id(placement) not in self._shares:
            self._shares[id(placement)] = shares(placement, self.at)
        if (number, tokens) not in self._slots:
            self._slots[number, tokens] = self._shares[id(placement)].expected(
                self.demand.chosen[number], tokens, self.layout.job.balance.exact)
        return self._slots[number, tokens]

    def _spread(self, rows: np.ndarray, tokens: int, expected: Expected) -> LayerRows:
        """rows `[E]` on those who hold the experts."""
        held, R, t = expected.of, self.layout.group, self.layout.shards
        slot = expected.slots(None if self.even else self._chance, rows)

        def by_rank(values: np.ndarray) -> np.ndarray:
            return np.repeat(np.bincount(held.rank // t, values, minlength=R // t), t)
        answers = by_rank(slot)
        received = answers * self.once_a_rank
        order, mean = self.classes.order(answers), self.classes.means
        there, home = self._flows(answers, received, expected.parts(slot, R, t))
        works = np.stack([by_rank(of) for of in cost.experts(self.model, self.hw, t, slot)])
        works = cost.with_company(works, self.hw.device.shared_by, self.hw.links.ranks_per_node)
        return LayerRows(self._journey(there, order, tokens), self._journey(home, order, tokens * self._most_home),
                         mean(order, received), mean(order, answers), np.stack([mean(order, of) for of in works]))

    @property
    def _most_home(self) -> int:
        assert self.model.moe
        return min(self.model.moe.top_k, most(self.placements))

    def _flows(self, answers: np.ndarray, received: np.ndarray, parts: np.ndarray | None) -> tuple[Flow, Flow]:
        """Both ways; a row has H values and a trailer, an answer of a shard is float32; parts as in `flow.there`."""
        moe, H, value = self.model.moe, self.model.hidden, self.hw.device.value
        assert moe
        presum = self.layout.job.exchange.presum
        to_nodes = self.at.sums(answers) / self.layout.shards * self.once_a_node if self.hops else None
        width = far_width(moe.top_k * self.layout.shards, presum) if self.hops else trailer_width(
            most(self.placements), moe.top_k)
        back = to_nodes if not self.hops or presum else self.at.sums(answers)
        return (flow.there(received, to_nodes, self.at, H * value + 2 * width, parts),
                flow.home(answers, back, self.at, H * (value if self.layout.shards == 1 else 4), parts))

    def _journey(self, moving: Flow, order: np.ndarray, most_rows: float) -> Journey:
        mean = self.classes.means
        moves = [flow.sent(hop, moving.row, self.hw.links, self.layout.job.exchange.mode, most_rows)
                 for hop in moving.hops]
        hops = tuple(Move((mean(order, m.out[0]), mean(order, m.out[1])), (mean(order, m.come[0]),
                     mean(order, m.come[1])), mean(order, m.messages), m.seconds, m.mode) for m in moves)
        near, far = (np.sum([hop.out[kind] for hop in moving.hops], axis=0) for kind in range(2))
        parts = np.stack([mean(order, rows) for rows in (moving.own, near, far)], axis=1)
        return Journey(hops, np.rint(parts * moving.row).astype(np.int64), parts.sum(axis=1))
