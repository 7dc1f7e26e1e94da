"""What the tokens of a step ask for in each layer, from the routing of an earlier run."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from hpcmoe.slots import Placement, Routing, Topology

PAIRS = 1 << 18
"""Pairs of experts of sampled tokens that are looked at in a layer; of more tokens some are left out, evenly."""


@dataclass(frozen=True)
class Demand:
    """Of one layer, in a step."""

    load: np.ndarray
    """`[R, E]` float64: rows that the tokens of each rank send to each expert"""
    expert: np.ndarray
    """`[n, K]` int64: the experts of sampled tokens"""
    home: np.ndarray | None
    """`[n]` int64: the node of each sampled token's rank; None where ranks are taken as alike"""

    @property
    def experts(self) -> int:
        return self.load.shape[1]

    @cached_property
    def rows(self) -> np.ndarray:
        """`[E]` float64: rows that each expert computes, all its replicas together."""
        return self.load.sum(axis=0)


def demands(routing: Routing, topology: Topology, tokens: float) -> list[Demand | None]:
    """`[L]`: of a step with `tokens` tokens on each rank; None for dense layers.

    Where the run had another number of ranks than the topology, each of these sends the same.
    """
    R = topology.ranks
    known = routing.load.shape[1] == R and bool((routing.rank < R).all())
    return [_layer(routing, layer, topology, tokens * R, known) if routing.load[layer].any() else None
            for layer in range(len(routing.load))]


def _layer(routing: Routing, layer: int, topology: Topology, tokens: float, known: bool) -> Demand:
    load, expert = routing.load[layer].astype(np.float64), routing.expert[:, layer].astype(np.int64)
    kept = np.flatnonzero((expert >= 0).all(axis=1))
    K = expert.shape[1]
    some = min(len(kept), max(PAIRS // max(K * K, 1), 1))
    kept = kept[np.arange(some) * len(kept) // max(some, 1)]
    if not known:
        load = np.repeat(load.sum(axis=0)[None] / topology.ranks, topology.ranks, axis=0)
    home = topology.node[routing.rank[kept]].astype(np.int64) if known else None
    return Demand(load * (tokens * K / load.sum()), expert[kept], home)


@dataclass(frozen=True)
class Spread:
    """A demand on those who hold the experts. A source splits its rows of an expert evenly over the replicas."""

    demand: Demand
    placement: Placement
    topology: Topology

    @cached_property
    def share(self) -> np.ndarray:
        """`[E, R]` float64: which part of an expert's rows each rank computes."""
        found, placement = np.zeros((self.demand.experts, self.topology.ranks)), self.placement
        found[placement.expert, placement.rank] = 1 / placement.copies[placement.expert]
        return found

    @cached_property
    def node_share(self) -> np.ndarray:
        """`[E, N]` float64: which part of an expert's rows goes to each node."""
        return by_node(self.share, self.topology)

    @cached_property
    def nodes(self) -> np.ndarray:
        """`[n, N]`: how likely each sampled token has a row for each node."""
        return reached(self.demand.expert, self.node_share)

    @cached_property
    def ranks(self) -> np.ndarray | None:
        """`[n, R]`: and for each rank; None where no two rows of a token meet on one."""
        return reached(self.demand.expert, self.share) if self.placement.most > 1 else None

    @property
    def computed(self) -> np.ndarray:
        """`[R]` float64: rows that each rank computes."""
        return self.demand.rows @ self.share

    @property
    def crossing(self) -> float:
        """Rows that a sampled token sends to other nodes in two hops, on the average: one for each node."""
        return self._away(self.nodes)

    @property
    def crossing_flat(self) -> float:
        """And in flat dispatch: one for each rank."""
        if self.ranks is not None:
            return self._away(by_node(self.ranks, self.topology))
        return self._away(sum((self.node_share[column] for column in self.demand.expert.T), np.zeros_like(self.nodes)))

    def _away(self, rows: np.ndarray) -> float:
        """Rows `[n, N]` for other nodes than the token's own, on the average."""
        if not len(rows):
            return 0.0
        if self.demand.home is None:
            return float((rows @ elsewhere(self.topology)).mean())
        return float((rows.sum(axis=1) - rows[np.arange(len(rows)), self.demand.home]).mean())

    def merged(self, share: np.ndarray, likely: np.ndarray | None) -> np.ndarray:
        """`[U]`: rows that go to each unit (rank or node) if a token sends it one, over those for each (token, k); 1
        where none go.

        share `[E, U]`; likely `[n, U]`: how likely each sampled token has a row there.
        """
        if likely is None:
            return np.ones(share.shape[1])
        every = np.bincount(self.demand.expert.ravel(), minlength=len(share)) @ share
        return np.divide(likely.sum(axis=0), every, out=np.ones(share.shape[1]), where=every > 0)


def by_node(per_rank: np.ndarray, topology: Topology) -> np.ndarray:
    """`[…, N]`: sums of `[…, R]` over the ranks of each node."""
    return per_rank @ (topology.node[:, None] == np.arange(topology.nodes)).astype(np.float64)


def reached(expert: np.ndarray, share: np.ndarray) -> np.ndarray:
    """`[n, U]`: how likely each token has a row for each unit; expert `[n, K]`, share `[E, U]`."""
    passes = 1 - share
    missed = passes[expert[:, 0]]
    for column in expert.T[1:]:
        missed *= passes[column]
    return 1 - missed


def elsewhere(topology: Topology) -> np.ndarray:
    """`[N]` float64: how likely a token of any rank is not on each node."""
    return 1 - np.bincount(topology.node, minlength=topology.nodes) / topology.ranks
