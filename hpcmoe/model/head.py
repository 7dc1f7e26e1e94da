"""The last thing that a token meets."""

from collections.abc import Callable

import numpy as np

from hpcmoe.kernels import choice
from hpcmoe.kernels.linear import linear
from hpcmoe.model.norm import norm
from hpcmoe.model.weights import Weights
from hpcmoe.spec import ModelSpec
from hpcmoe.types import Batch

LOGITS = 1 << 23
"""Logits that are held at once."""

Choose = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""(logits `[B, V]`, prompt `[B]`, position of the next token `[B]`, target `[B]`) -> next token `[B]` int32"""


def next_tokens(model: ModelSpec, weights: Weights, x: np.ndarray, batch: Batch, choose: Choose,
                keep_logits: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Behind the wanted rows of x `[T, H]`: tokens and their log-probabilities, and the logits where they are kept."""
    step = max(1, LOGITS // model.vocabulary)  # scoring asks for those of every token
    found = [_of(model, weights, x, batch, choose, slice(first, first + step), keep_logits)
             for first in range(0, max(len(batch.wanted), 1), step)]
    token, logprob, logits = (np.concatenate(parts) for parts in zip(*found))
    return token, logprob, logits if keep_logits else None


def _of(model: ModelSpec, weights: Weights, x: np.ndarray, batch: Batch, choose: Choose, rows: slice,
        keep_logits: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    wanted = batch.wanted[rows]
    logits = head(model, weights, x[wanted])
    token = choose(logits, batch.prompt[rows], batch.position[wanted] + 1, batch.target[rows])
    return token, choice.logprobs(logits, token), logits if keep_logits else logits[:, :0]


def head(model: ModelSpec, weights: Weights, x: np.ndarray) -> np.ndarray:
    """Logits of tokens x `[B, H]` -> `[B, V]` float32, rounded to x's dtype on the way."""
    return linear(norm(model, x, weights.norm), weights.head).astype(np.float32, copy=False)
