"""Plans for the seed's experiment, as `hpcmoe plan` makes them of a run: here of how likely each expert is."""

from pathlib import Path

import numpy as np

from hpcmoe.files import plan
from hpcmoe.files.plan import EXCHANGES, LINKS, Plan, Weights
from hpcmoe.placement.policy import POLICIES, Case
from hpcmoe.predict import flow
from hpcmoe.predict.demand import Demand
from hpcmoe.predict.machine import Hardware
from hpcmoe.slots import Routing, Topology
from hpcmoe.spec import ModelSpec

SAMPLED, ROWS, POLICY = 2048, 1e7, "topology"
"""Tokens and rows of the run that a plan is taken to be made of, and `hpcmoe plan`'s own policy."""


def write(path: Path, spec: ModelSpec, hw: Hardware, use: Demand, ranks: int, tokens: int, compute: float) -> None:
    """For so many ranks that hold as few experts each as can be, with `tokens` tokens each, of whose rows each takes
    `compute` seconds. For flat exchanges: one for two hops takes minutes for 384 ranks."""
    links, between = hw.links, _between(hw, ranks)
    weights = Weights(tokens, 2.0 * spec.hidden, compute, links.near_latency, links.near_rate, links.far_latency,
                      links.far_rate)
    case = Case(_routing(spec, use), between, weights, -(-spec.experts // ranks), EXCHANGES[0])
    found = POLICIES[POLICY](case)
    plan.write(path, Plan(spec.name, spec.experts, found, between.node, POLICY, 0, EXCHANGES[0], LINKS[1], weights,
                          case.predict(found)))


def _routing(spec: ModelSpec, use: Demand) -> Routing:
    """A run of one rank in which experts were used so; tokens of other layers have those that are as popular there."""
    load = np.zeros((spec.layers, 1, spec.experts), np.int64)
    load[list(spec.moe_layers), 0] = np.rint(use.chosen * ROWS)
    popular = np.argsort(-use.chosen, axis=1)
    place = np.argsort(popular[0])[use.sample[:SAMPLED]]
    expert = np.full((len(place), spec.layers, place.shape[1]), -1, np.int16)
    for order, layer in zip(popular, spec.moe_layers):
        expert[:, layer] = order[place]
    return Routing(load, np.zeros(len(place), np.int32), expert)


def _between(hw: Hardware, ranks: int) -> Topology:
    links, node = hw.links, flow.nodes(ranks, hw.links.ranks_per_node).node
    same, own = node[:, None] == node, np.eye(ranks, dtype=bool)
    return Topology(node.astype(np.int32), np.where(own, 0, np.where(same, links.near_latency, links.far_latency)),
                    np.where(own, np.inf, np.where(same, links.near_rate, links.far_rate)))
