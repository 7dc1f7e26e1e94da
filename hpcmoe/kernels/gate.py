"""The choice of experts from gate logits."""

import numpy as np

from hpcmoe.spec import Moe
from hpcmoe.types import Route


def choose(logits: np.ndarray, moe: Moe) -> Route:
    """Softmax over logits `[T, E]` float32, then the top K of each token, best first; the lower
    expert wins a tie. Weights are divided by their sum where the spec says so."""
    scores = np.exp(logits - logits.max(axis=1, keepdims=True))
    scores /= scores.sum(axis=1, keepdims=True)
    expert = np.argsort(-scores, axis=1, kind="stable")[:, :moe.top_k]
    weight = np.take_along_axis(scores, expert, axis=1)
    if moe.renormalise:
        weight /= weight.sum(axis=1, keepdims=True)
    return Route(expert.astype(np.int32), weight * np.float32(moe.scale))
