"""The choice of the next token."""

import numpy as np


def greedy(logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The likeliest token of each row of logits `[B, V]` float32, the lower one at a tie -> `[B]` int32,
    and its log-probability -> `[B]` float32."""
    token = logits.argmax(axis=1)
    best = np.take_along_axis(logits, token[:, None], axis=1)
    total = np.log(np.exp(logits - best).sum(axis=1, dtype=np.float64))
    return token.astype(np.int32), (-total).astype(np.float32)
