"""The choice of the next token, and the log-probability of one."""

import numpy as np


def logprobs(logits: np.ndarray, token: np.ndarray) -> np.ndarray:
    """Log-probability of token `[B]` under logits `[B, V]` float32 -> `[B]` float32."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    total = np.log(np.exp(shifted).sum(axis=1, dtype=np.float64))
    return (np.take_along_axis(shifted, token[:, None].astype(np.intp), axis=1)[:, 0] - total).astype(np.float32)


def greedy(logits: np.ndarray) -> np.ndarray:
    """The likeliest token of each row of logits `[B, V]`, the lower one at a tie -> `[B]` int32."""
    return logits.argmax(axis=1).astype(np.int32)


def uniform(seed: int, prompt: int, position: int) -> float:
    """A number in [0, 1) that belongs to one position of one prompt, wherever it is computed.

    The first word of Philox 4x64-10 (Salmon et al., 2011) with the seed as key and (position, prompt) as counter.
    """
    word = np.random.Philox(key=seed, counter=[position, prompt, 0, 0]).random_raw()
    return (word >> 11) * 2.0**-53


def sample(logits: np.ndarray, temperature: float, top_p: float, u: np.ndarray) -> np.ndarray:
    """Draws a token from each row of logits `[B, V]` float32 by u `[B]` float64 in [0, 1) -> `[B]` int32.

    Among the likeliest tokens that together have probability `top_p` at `temperature` (Holtzman et al., "The curious
    case of neural text degeneration", 2020), the one at which the cumulated probability passes u. It is cumulated
    in the order of the vocabulary: near ties then do not move it, as they would in the order of probability.
    """
    return np.array([_draw(row, temperature, top_p, at) for row, at in zip(logits, u)], np.int32)


def _draw(logits: np.ndarray, temperature: float, top_p: float, u: float) -> int:
    p = np.exp((logits.astype(np.float64) - logits.max()) / temperature)
    if top_p < 1:
        order = np.argsort(-p, kind="stable")
        mass = np.cumsum(p[order])
        p[order[int(np.searchsorted(mass, top_p * mass[-1])) + 1:]] = 0
    total = np.cumsum(p)
    return int(np.searchsorted(total, u * total[-1], side="right"))
