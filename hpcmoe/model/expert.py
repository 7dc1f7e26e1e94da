"""The feed-forward blocks: dense, shared, and routed experts alike are SwiGLUs."""

from collections.abc import Sequence

import numpy as np

from hpcmoe.kernels.linear import linear
from hpcmoe.kernels.swiglu import activate, activate_within
from hpcmoe.model.weights import Shared, Swiglu
from hpcmoe.types import ReceivePlan


def feed_forward(weights: Swiglu, x: np.ndarray, limit: float = 0, dtype: np.dtype | None = None) -> np.ndarray:
    """x `[T, H]` -> `[T, H]` of `dtype`, or x's; `limit` as in `spec.Moe`"""
    both = _plus(linear(x, weights.gate_up), weights.gate_up_bias)
    return _plus(linear(activate_within(both, limit) if limit else activate(both), weights.down, dtype=dtype),
                 weights.down_bias)


def _plus(y: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
    """Rounded before and behind, as GPT-OSS's module does, unlike the biases of attention."""
    return y if bias is None else y + bias.astype(y.dtype)


def shared(weights: Shared, x: np.ndarray) -> np.ndarray:
    """The shared expert's answer to x `[T, H]`, weighed by its gate where it has one -> `[T, H]`"""
    y = feed_forward(weights.swiglu, x)
    if weights.gate is None:
        return y
    logit = linear(x, weights.gate).astype(np.float32, copy=False)
    with np.errstate(over="ignore"):
        return (1 / (1 + np.exp(-logit))).astype(x.dtype, copy=False) * y


def experts(slots: Sequence[Swiglu], rows: np.ndarray, plan: ReceivePlan, out: np.ndarray,
            place: np.ndarray | None = None, limit: float = 0) -> None:
    """Each slot computes its rows, one slot after another; answers go to `out` in the order of return.

    rows `[M, H]` as received, out `[extent, H]` of the same dtype, or float32 where slots hold shards; place `[M']`
    says where in it each answer of that order lies, M' the sum of plan.slot_counts; where it is None they lie one after
    another. `limit` as in `spec.Moe`.
    """
    to = plan.place if place is None else place[plan.place]
    first = 0
    for weights, count in zip(slots, plan.slot_counts):
        part = slice(first, first + int(count))
        first = part.stop
        if count:
            out[to[part]] = feed_forward(weights, rows[plan.row[part]], limit, out.dtype)
