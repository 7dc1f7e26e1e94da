"""The feed-forward blocks: dense, shared, and routed experts alike are SwiGLUs."""

from collections.abc import Sequence

import numpy as np

from hpcmoe.kernels.swiglu import swiglu
from hpcmoe.model.weights import Swiglu
from hpcmoe.types import ReceivePlan


def feed_forward(weights: Swiglu, x: np.ndarray) -> np.ndarray:
    """x `[T, H]` -> `[T, H]`"""
    return swiglu(x, weights.gate_up, weights.down)


def experts(slots: Sequence[Swiglu], rows: np.ndarray, plan: ReceivePlan, out: np.ndarray) -> None:
    """Each slot computes its rows, one slot after another; answers go to `out` in the order of return.

    rows `[M, H]` as received, out `[M', H]` of the same dtype, M' the sum of plan.slot_counts.
    """
    first = 0
    for weights, count in zip(slots, plan.slot_counts):
        part = slice(first, first + int(count))
        first = part.stop
        if count:
            out[plan.place[part]] = feed_forward(weights, rows[plan.row[part]])
