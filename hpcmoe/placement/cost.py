"""What a placement is expected to cost: the time of a rank in a layer is a sum of few terms (`files.plan.TERMS`).

A rank computes the rows of its experts, takes them in, and sends as many answers back; what it sends out and takes back
as a source meanwhile has the other direction of its links. Links of a rank are taken to work one after another, each at
its own rate; messages to many ranks are under way at once and cost the longest latency among them, once for each hop,
there and back. Answers return one for each (token, k).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hpcmoe.files.plan import TERMS, Prediction, Weights
from hpcmoe.placement.demand import Demand, Spread
from hpcmoe.slots import Placements, Topology, members, places
from hpcmoe.traffic import CLASSES


@dataclass(frozen=True)
class Rows:
    """Rows that travel in a step, from rank to rank, `[R, R]` float64 each."""

    near: np.ndarray
    """to the ranks that compute them: from their sources, or in two hops from who passes them on inside the node"""
    near_back: np.ndarray
    """`near` seen from the way back: the answers to what came by it, from and to as there"""
    far: np.ndarray
    """in two hops: to those who pass them on; nothing in flat dispatch"""
    far_back: np.ndarray


def predict(demands: Sequence[Demand | None], placements: Placements, topology: Topology, weights: Weights,
            exchange: str) -> Prediction:
    """What each layer of a step costs."""
    L, R = len(demands), topology.ranks
    found = Prediction(np.zeros((L, R)), np.zeros((L, len(CLASSES))), np.zeros(L), np.zeros((L, len(TERMS))))
    for layer, (demand, placement) in enumerate(zip(demands, placements)):
        if demand is None:
            continue
        spread = Spread(demand, placement, topology)
        rows, found.rows[layer] = travelling(spread, exchange), spread.computed
        found.bytes[layer] = weights.row * _by_class(rows, topology)
        found.crossing[layer] = spread.crossing_flat if exchange == "flat" else spread.crossing
        times = terms(spread.computed, rows, topology, weights)
        found.seconds[layer] = times[:, times.sum(axis=0).argmax()]
    return found


def travelling(spread: Spread, exchange: str) -> Rows:
    """The rows of a layer."""
    load, topology = spread.demand.load, spread.topology
    back = load @ spread.share
    sent = back * spread.merged(spread.share, spread.ranks)
    if exchange == "flat":
        return Rows(sent, back, np.zeros_like(sent), np.zeros_like(sent))
    per_node = load @ spread.node_share
    once = per_node * spread.merged(spread.node_share, spread.nodes)
    found, nodes = Rows(*(np.zeros_like(back) for _ in range(4))), members(topology.node)
    for whole, to in ((sent, found.near), (back, found.near_back)):
        passed = _passed(whole, topology)
        for ranks in nodes:
            to[np.ix_(ranks, ranks)] = passed[len(ranks)][:, ranks]
    place = places(topology.node)
    for node, ranks in enumerate(nodes):
        others = np.flatnonzero(topology.node != node)
        by = ranks[place[others] % len(ranks)]
        found.far[others, by], found.far_back[others, by] = once[others, node], per_node[others, node]
    return found


def _passed(rows: np.ndarray, topology: Topology) -> dict[int, np.ndarray]:
    """What each rank of a node takes in for it, `[size, X]`, by the node's size: sums of rows `[R, X]` over sources."""
    place = places(topology.node)
    return {size: (np.arange(size)[:, None] == place % size).astype(np.float64) @ rows
            for size in {len(ranks) for ranks in members(topology.node)}}


def terms(computes: np.ndarray, rows: Rows, topology: Topology, weights: Weights) -> np.ndarray:
    """`[len(TERMS), R]` float64: seconds of each rank; computes `[R]`: rows that it computes."""
    pace, same = 1 / topology.rate, topology.node[:, None] == topology.node
    there, back = (rows.near + rows.far) * pace, (rows.near_back + rows.far_back) * pace.T
    link = weights.row * (there + back)
    latency = sum(np.where(used > 0, way, 0).max(axis=0)  # of one hop after the other
                  for used in (rows.near, rows.far) for way in (topology.latency, topology.latency.T))
    return np.stack([weights.compute * computes, np.where(same, link, 0).sum(axis=0),
                     np.where(same, 0, link).sum(axis=0), latency])


def _by_class(rows: Rows, topology: Topology) -> np.ndarray:
    """`[len(CLASSES)]` float64: rows there and back."""
    every = rows.near + rows.near_back + rows.far + rows.far_back
    own, inside = np.trace(every), every[topology.node[:, None] == topology.node].sum()
    return np.array([own, inside - own, every.sum() - inside])


def holding(demand: Demand, topology: Topology, weights: Weights, exchange: str) -> np.ndarray:
    """`[E, R]` float64: seconds that each expert costs a rank that has all of its rows: to compute, take in and answer.

    In two hops what other nodes send comes from those who pass it on; what these take in does not depend on the rank.
    """
    pace = 1 / topology.rate + 1 / topology.rate.T
    compute = weights.compute * demand.rows[:, None]
    if exchange == "flat":
        return compute + weights.row * (demand.load.T @ pace)
    found, passed = np.empty((demand.experts, topology.ranks)), _passed(demand.load, topology)
    for ranks in members(topology.node):
        found[:, ranks] = compute + weights.row * (passed[len(ranks)].T @ pace[np.ix_(ranks, ranks)])
    return found


def paces(topology: Topology) -> tuple[float, float]:
    """Seconds that a byte takes inside a node, and between nodes: the medians; 0 where there are no such links."""
    same = topology.node[:, None] == topology.node
    links = ~np.eye(topology.ranks, dtype=bool)
    near, far = (1 / topology.rate[where & links] for where in (same, ~same))
    return tuple(float(np.median(found)) if len(found) else 0.0 for found in (near, far))  # type: ignore[return-value]
