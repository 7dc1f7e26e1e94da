"""The gate of a layer: which experts a token goes to."""

import numpy as np

from hpcmoe.kernels.gate import choose
from hpcmoe.kernels.linear import product
from hpcmoe.model.weights import Gate
from hpcmoe.spec import Moe
from hpcmoe.types import Route


def gate(moe: Moe, weights: Gate, x: np.ndarray) -> Route:
    """The Route of normed tokens x `[T, H]`. All is float32 here, but for families that round logits or weights."""
    logits = product(x, weights.weight)
    if moe.round_logits:
        logits = logits.astype(x.dtype).astype(np.float32, copy=False)
    route = choose(logits, weights.bias, moe)
    if moe.round_weights:
        return Route(route.expert, route.weight.astype(x.dtype).astype(np.float32, copy=False))
    return route
