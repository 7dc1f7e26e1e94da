"""Where the seconds of a step go."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from hpcmoe.types import STAGES


class Clock:
    """Adds up seconds by stage until it is read."""

    def __init__(self) -> None:
        self._seconds = dict.fromkeys(STAGES, 0.0)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """The block's time counts for stage `name`; for none where that is ""."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            if name:
                self._seconds[name] += time.perf_counter() - begin

    def read(self) -> np.ndarray:
        """`[stages]` float64 seconds since the last call."""
        seconds = np.array(list(self._seconds.values()))
        self._seconds = dict.fromkeys(STAGES, 0.0)
        return seconds
