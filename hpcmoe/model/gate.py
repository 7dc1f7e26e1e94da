"""The gate of a layer: which experts a token goes to."""

import numpy as np

from hpcmoe.kernels.gate import choose
from hpcmoe.kernels.linear import product
from hpcmoe.spec import Moe
from hpcmoe.types import Route


def gate(moe: Moe, weight: np.ndarray, x: np.ndarray) -> Route:
    """Normed tokens x `[T, H]`, weight `[E, H]` -> their Route. Everything is float32 here, but for the
    logits of families that round them."""
    logits = product(x, weight)
    if moe.round_logits:
        logits = logits.astype(x.dtype).astype(np.float32)
    return choose(logits, moe)
