"""What `balance.exact` adds to a layer: an all-gather of each rank's rows by expert, and shares of all of them."""

import numpy as np

from hpcmoe.predict import flow
from hpcmoe.predict.flow import Nodes
from hpcmoe.predict.machine import Hardware
from hpcmoe.slots import Placement

PASS, VALUE, BEYOND, SMALL = 40e-6, 1.2e-9, 20e-9, 1 << 14
"""Seconds of a pass of `replicas.exact` over a node, and of each of its values: up to so many of them, and where there
are more, whose arrays leave the caches. NumPy on a core of an AMD EPYC, 8 to 1,024 ranks and 4 to 256 experts."""


def gathered(hw: Hardware, at: Nodes, experts: int) -> float:
    """Seconds until each rank has E int64 of all."""
    return flow.gathered(at.ranks, hw.links, 8.0 * experts, at.many)


def shared(placement: Placement, at: Nodes) -> float:
    """Seconds of a core: one pass for each node and one for what is left, over `[E, R]` rows and `[E, C]` replicas."""
    values = len(placement.copies) * (placement.ranks + placement.slots.shape[1])
    groups = placement.ranks // placement.shards if placement.shards > 1 else 0
    return (groups + int(np.max(at.node)) + 2) * (PASS + values * (VALUE if values <= SMALL else BEYOND))
