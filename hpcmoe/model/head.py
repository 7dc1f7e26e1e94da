"""The last thing that a token meets."""

import numpy as np

from hpcmoe.kernels.linear import linear
from hpcmoe.model.norm import norm
from hpcmoe.model.weights import Weights
from hpcmoe.spec import ModelSpec


def head(model: ModelSpec, weights: Weights, x: np.ndarray) -> np.ndarray:
    """Logits of tokens x `[B, H]` -> `[B, V]` float32, rounded to x's dtype on the way."""
    return linear(norm(model, x, weights.norm), weights.head).astype(np.float32, copy=False)
