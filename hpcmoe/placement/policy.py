"""The policies: from the routing of a run to who holds what in each layer."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from hpcmoe.errors import JobError
from hpcmoe.files.plan import Prediction, Weights
from hpcmoe.placement import cost, plan
from hpcmoe.placement.assign import ordered
from hpcmoe.placement.demand import Demand, demands
from hpcmoe.placement.replicas import scan
from hpcmoe.placement.topology import Layer, best, quickest
from hpcmoe.slots import Placement, Placements, Routing, Topology


@dataclass(frozen=True)
class Case:
    """What a policy decides by."""

    routing: Routing
    topology: Topology
    weights: Weights
    capacity: int
    """experts that a rank may hold in a layer, at most"""
    exchange: str
    """one of `files.plan.EXCHANGES`"""
    seed: int = 0

    @property
    def experts(self) -> int:
        return self.routing.load.shape[2]

    @property
    def ranks(self) -> int:
        return self.topology.ranks

    @cached_property
    def demands(self) -> list[Demand | None]:
        """`[L]`; None for dense layers."""
        return demands(self.routing, self.topology, self.weights.tokens)

    @cached_property
    def layers(self) -> dict[int, Layer]:
        """Those with experts."""
        layers = sum(demand is not None for demand in self.demands)
        return {layer: Layer(demand, self.topology, self.weights, self.capacity, self.exchange, layers,
                             (self.seed, layer)) for layer, demand in enumerate(self.demands) if demand}

    def predict(self, placements: Placements) -> Prediction:
        """What a step is expected to take."""
        return cost.predict(self.demands, placements, self.topology, self.weights, self.exchange)


def check(case: Case) -> None:
    """Raises `JobError` where the experts do not fit."""
    if case.capacity * case.ranks < case.experts:
        raise JobError(f"{case.ranks} ranks that hold {case.capacity} experts of a layer at most cannot hold "
                       f"{case.experts}: give --slots {-(-case.experts // case.ranks)} or more")


def _each(case: Case, place: Callable[[int, Demand], Placement]) -> Placements:
    """A placement for each layer; in dense ones nothing is held."""
    nothing = np.empty(0, np.int32)
    return [Placement(case.ranks, nothing, nothing) if demand is None else place(layer, demand)
            for layer, demand in enumerate(case.demands)]


def linear(case: Case) -> Placements:
    """Experts in order, one slot each: what runs have without a plan."""
    return _each(case, lambda layer, demand: plan.linear(case.experts, case.ranks))


def random(case: Case) -> Placements:
    """Experts in an order drawn from the seed, one slot each."""
    def place(layer: int, demand: Demand) -> Placement:
        found = plan.linear(case.experts, case.ranks)
        order = np.random.default_rng([case.seed, layer]).permutation(case.experts)
        return ordered(case.ranks, found.rank, order)
    return _each(case, place)


def load(case: Case) -> Placements:
    """By rows alone: replicas for the busiest, the heaviest slot to the rank with the fewest rows."""
    return _each(case, lambda layer, demand: ordered(case.ranks, *scan(demand.rows, case.ranks, case.capacity)))


def topology(case: Case) -> Placements:
    """By rows and links; in two hops the rows between nodes come first, see `placement.topology`."""
    return _each(case, lambda layer, demand: best(case.layers[layer]))


def quick(case: Case) -> Placements:
    """As `topology`, but in two hops too the slowest rank comes first."""
    return _each(case, lambda layer, demand: quickest(case.layers[layer]))


POLICIES: dict[str, Callable[[Case], Placements]] = {"linear": linear, "random": random, "load": load,
                                                     "topology": topology, "quick": quick}
