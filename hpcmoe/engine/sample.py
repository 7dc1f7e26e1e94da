"""Tokens that stand for all: which experts they went to, in every layer."""

import numpy as np


class Sample:
    """Of a growing number of tokens as many as there is room for, evenly over time."""

    def __init__(self, room: int, shape: tuple[int, int]) -> None:
        """Keeps `room` tokens at most; their shape is (L, K)."""
        self._room, self._shape = room, shape
        self._kept: list[np.ndarray] = []
        self._turn, self._each = 0, 1

    def add(self, tokens: np.ndarray) -> None:
        """Those of one step: `[s, L, K]` int16."""
        if self._turn % self._each == 0:
            self._kept.append(tokens)
        self._turn += 1
        while len(self._kept) > 1 and sum(map(len, self._kept)) > self._room:
            self._kept, self._each = self._kept[::2], 2 * self._each

    def experts(self) -> np.ndarray:
        """`[n, L, K]` int16."""
        return np.concatenate([np.empty((0, *self._shape), np.int16), *self._kept])[:self._room]
