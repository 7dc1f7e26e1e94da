"""The last thing that a token meets."""

import numpy as np

from hpcmoe.kernels.linear import linear
from hpcmoe.kernels.norm import rms_norm
from hpcmoe.model.weights import Weights


def head(weights: Weights, x: np.ndarray, eps: float) -> np.ndarray:
    """Logits of tokens x `[B, H]` -> `[B, V]` float32, rounded to x's dtype on the way."""
    return linear(rms_norm(x, weights.norm, eps), weights.head).astype(np.float32, copy=False)
