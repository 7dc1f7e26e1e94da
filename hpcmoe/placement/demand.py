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
    R, known = topology.ranks, routing.load.shape[1] == topology.ranks
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


def shares(placement: Placement, experts: int) -> np.ndarray:
    """`[E, R]` float64: which part of an expert's rows each rank computes: as much on each replica."""
    found = np.zeros((experts, placement.ranks))
    found[placement.expert, placement.rank] = 1 / placement.copies[placement.expert]
    return found


def by_node(per_rank: np.ndarray, topology: Topology) -> np.ndarray:
    """`[…, N]`: sums of `[…, R]` over the ranks of each node."""
    return per_rank @ (topology.node[:, None] == np.arange(topology.nodes)).astype(np.float64)


def reached(expert: np.ndarray, share: np.ndarray) -> np.ndarray:
    """`[n, U]`: how likely each sampled token has a row for each unit (a rank, or a node).

    share `[E, U]`: which part of an expert's rows goes there.
    """
    missed = np.ones((len(expert), share.shape[1]))
    for column in expert.T:
        missed *= 1 - share[column]
    return 1 - missed


def merged(expert: np.ndarray, share: np.ndarray) -> np.ndarray:
    """`[U]`: rows that go to each unit if a token sends it one, over those for each (token, k); 1 where none go."""
    every = np.bincount(expert.ravel(), minlength=len(share)) @ share
    return np.divide(reached(expert, share).sum(axis=0), every, out=np.ones(share.shape[1]), where=every > 0)


def crossing(demand: Demand, placement: Placement, topology: Topology) -> tuple[float, float]:
    """Rows that a sampled token sends to other nodes, on the average: one for each node, as in two hops; and one for
    each rank, as in flat dispatch."""
    share = shares(placement, demand.experts)
    of_node = by_node(share, topology)
    nodes = reached(demand.expert, of_node)
    if placement.most > 1:
        ranks = by_node(reached(demand.expert, share), topology)
    else:  # no two rows of a token meet
        ranks = sum((of_node[column] for column in demand.expert.T), np.zeros_like(nodes))
    return _away(nodes, demand, topology), _away(ranks, demand, topology)


def _away(rows: np.ndarray, demand: Demand, topology: Topology) -> float:
    """Rows `[n, N]` for other nodes than the token's own, on the average."""
    if not len(rows):
        return 0.0
    if demand.home is None:
        return float((rows @ elsewhere(topology)).mean())
    return float((rows.sum(axis=1) - rows[np.arange(len(rows)), demand.home]).mean())


def elsewhere(topology: Topology) -> np.ndarray:
    """`[N]` float64: how likely a token of any rank is not on each node."""
    return 1 - np.bincount(topology.node, minlength=topology.nodes) / topology.ranks


def relays(topology: Topology) -> np.ndarray:
    """`[R, N]` int64: who takes the rows of each rank in each node: the rank with its local index; itself at home."""
    sizes = np.bincount(topology.node, minlength=topology.nodes)
    local, members = np.zeros(topology.ranks, np.int64), []
    for node in range(topology.nodes):
        ranks = np.flatnonzero(topology.node == node)
        local[ranks] = np.arange(len(ranks))
        members.append(ranks)
    found = [ranks[local % size] for ranks, size in zip(members, sizes)]
    return np.stack(found, axis=1)
