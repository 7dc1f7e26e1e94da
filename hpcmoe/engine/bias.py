"""Scores that are raised for experts with few rows and lowered for those with many, in the choice of experts alone.

After "Auxiliary-loss-free load balancing strategy for mixture-of-experts" (Wang et al. 2024), algorithm 1, which is for
training: here too the weights of the answers stay those of the unbiased scores, but other experts answer than the model
was trained for, so results change. A step's rows count from the step after the next one on: they are added up until
then.
"""

from collections.abc import Callable

import numpy as np

from hpcmoe.engine.loads import Loads

Steer = Callable[[np.ndarray], None]
"""Takes a bias `[L, E]` float32 for the steps to come."""


def updated(bias: np.ndarray, rows: np.ndarray, rate: float) -> np.ndarray:
    """`bias` `[L, E]` float32, `rate` higher for experts with fewer rows than the mean of their layer, lower for those
    with more; rows `[L, E]`."""
    return bias + np.float32(rate) * np.sign(rows.mean(axis=1, keepdims=True) - rows).astype(np.float32)


class Bias:
    """A `generate.Balance` that steers the choice of experts. Collective, as `loads` is."""

    taken = ready = 0

    def __init__(self, loads: Loads, shape: tuple[int, int], rate: float, steer: Steer) -> None:
        """shape is (L, E); the same rate on all ranks."""
        self._loads, self._rate, self._steer = loads, rate, steer
        self.value = np.zeros(shape, np.float32)
        self._rows = np.zeros(shape, np.int64)
        self._steer(self.value)

    def add(self, load: np.ndarray) -> None:
        """Takes up the rows of a step; load `[L, E]` int64 are this rank's."""
        self._rows[...] = load

    def between(self, ready: np.ndarray, step: int) -> None:
        """What is due before step number `step`."""
        if self._loads.started:
            self.value = updated(self.value, self._loads.wait(), self._rate)
            self._steer(self.value)
        self._loads.start(self._rows)

    def undo(self, taken: int) -> None:
        """Nothing: who lost a rank begins with no bias."""

    def close(self) -> None:
        """Nothing is under way but sums."""

    def free(self) -> None:
        """Collective."""
        self._loads.free()
