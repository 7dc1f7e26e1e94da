"""The gate of a layer: which experts a token goes to."""

import numpy as np

from hpcmoe.kernels.gate import choose
from hpcmoe.kernels.linear import product
from hpcmoe.model.weights import Gate
from hpcmoe.spec import Moe
from hpcmoe.types import Route


def gate(moe: Moe, weights: Gate, x: np.ndarray) -> Route:
    """The Route of normed tokens x `[T, H]`. All is float32 here, but for families that round logits or weights."""
    return _route(moe, weights.bias, _logits(moe, weights, x), x.dtype)


def steered(moe: Moe, weights: Gate, bias: np.ndarray, x: np.ndarray) -> tuple[Route, int]:
    """The same with another bias `[E]` float32 on top in the choice; and how many (token, k) that moved elsewhere."""
    logits = _logits(moe, weights, x)
    route = _route(moe, bias if weights.bias is None else weights.bias + bias, logits, x.dtype)
    plain = choose(logits, weights.bias, moe).expert
    return route, int((route.expert[:, :, None] != plain[:, None]).all(axis=2).sum())


def _logits(moe: Moe, weights: Gate, x: np.ndarray) -> np.ndarray:
    logits = product(x, weights.weight)
    if weights.logit_bias is not None:
        logits += weights.logit_bias
    return logits.astype(x.dtype).astype(np.float32, copy=False) if moe.round_logits else logits


def _route(moe: Moe, bias: np.ndarray | None, logits: np.ndarray, dtype: np.dtype) -> Route:
    route = choose(logits, bias, moe)
    if moe.round_weights:
        return Route(route.expert, route.weight.astype(dtype).astype(np.float32, copy=False))
    return route
