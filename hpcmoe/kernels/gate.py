"""The choice of experts from gate logits."""

import numpy as np

from hpcmoe.spec import Moe
from hpcmoe.types import Route


def choose(logits: np.ndarray, bias: np.ndarray | None, moe: Moe) -> Route:
    """The top K experts of each token and their weights, from logits `[T, E]` float32.

    Scores (softmax or sigmoid of the logits) plus bias `[E]` decide, best first, the lower expert at a tie;
    weights are scores without the bias. With groups, only experts of each token's best groups count (DeepSeek-AI,
    "DeepSeek-V3 technical report", 2024, section 2.1.2).
    """
    scores = _score(logits, moe)
    ranking = scores if bias is None else scores + bias
    if moe.groups > 1:
        ranking = _of_best_groups(ranking, moe)
    expert = _best(ranking, moe.top_k)
    weight = np.take_along_axis(scores, expert, axis=1)
    if moe.score == "softmax_of_chosen":
        weight = _softmax(weight)
    elif moe.renormalise:
        weight /= weight.sum(axis=1, keepdims=True) + np.float32(1e-20)  # sigmoids may all be 0
    return Route(expert.astype(np.int32), weight * np.float32(moe.scale))


def _score(logits: np.ndarray, moe: Moe) -> np.ndarray:
    if moe.score == "softmax":
        return _softmax(logits)
    if moe.score == "sigmoid":
        with np.errstate(over="ignore"):  # exp(-x) of a very negative x is infinite, and 0 the right answer
            return 1 / (1 + np.exp(-logits))
    return logits


def _softmax(x: np.ndarray) -> np.ndarray:
    x = np.exp(x - x.max(axis=1, keepdims=True))
    x /= x.sum(axis=1, keepdims=True)
    return x


def _best(ranking: np.ndarray, count: int) -> np.ndarray:
    """`[T, count]`: the columns of the largest values of each row, largest first, the lower at a tie."""
    return np.argsort(-ranking, axis=1, kind="stable")[:, :count]


def _of_best_groups(ranking: np.ndarray, moe: Moe) -> np.ndarray:
    """`ranking` with -inf outside the best groups of each token."""
    grouped = ranking.reshape(-1, moe.groups, moe.experts // moe.groups)
    counted = 1 if moe.group_score == "max" else 2
    score = np.sort(grouped, axis=2)[:, :, -counted:].sum(axis=2)
    kept = np.zeros(score.shape, bool)
    np.put_along_axis(kept, _best(score, moe.groups_kept), True, axis=1)
    return np.where(kept[:, :, None], grouped, -np.inf).reshape(ranking.shape)
