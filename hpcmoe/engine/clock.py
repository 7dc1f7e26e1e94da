"""Where the seconds of a step go, and what its exchanges cost and move."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

from hpcmoe.engine.trace import Silent, Trace
from hpcmoe.types import CLASSES, STAGES, Course, Traffic


class Clock:
    """Adds up seconds by stage, and the traffic of each layer, until they are read."""

    def __init__(self, layers: int, classes: np.ndarray, busy: Callable[[], float] = lambda: 0.0,
                 trace: Trace | Silent | None = None) -> None:
        """`classes` `[R]`: of each rank, its place in `CLASSES`; `busy()`: seconds of work on the stream so far."""
        self._layers, self._classes, self._busy, self.trace = layers, classes, busy, trace or Silent()
        self._begin_anew()

    def _begin_anew(self) -> None:
        self._seconds = dict.fromkeys(STAGES, 0.0)
        self._travel, self._exposed = np.zeros((2, self._layers))
        self._bytes = np.zeros((self._layers, len(CLASSES)), np.int64)

    @contextmanager
    def stage(self, name: str, layer: int = -1, micro_batch: int = -1) -> Iterator[None]:
        """The block's time counts for stage `name`."""
        self.trace.open(name)
        begin = time.perf_counter()
        try:
            yield
        finally:
            end = time.perf_counter()
            self.trace.close()
            self._seconds[name] += end - begin
            self.trace.computed(name, begin, end, layer, micro_batch)

    @contextmanager
    def waiting(self, course: Course | None) -> Iterator[None]:
        """The block waits for an exchange: while the stream computes nothing, that is exposed. None: for the stream."""
        if course is None:
            yield
            return
        begin, busy = time.perf_counter(), self._busy()
        try:
            yield
        finally:
            end = time.perf_counter()
            self._seconds["exchange"] += end - begin
            self._exposed[course.layer] += max(0.0, end - begin - (self._busy() - busy))
            self.trace.waited(course.kind, begin, end, course.layer, course.micro_batch)

    @contextmanager
    def voting(self) -> Iterator[None]:
        """The block is the vote between two steps."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self._seconds["exchange"] += time.perf_counter() - begin

    def sent(self, course: Course, counts: np.ndarray, size: int) -> None:
        """Rows of `size` bytes leave, counts `[R]` for each rank."""
        self._bytes[course.layer] += size * np.bincount(self._classes, counts, len(CLASSES)).astype(np.int64)

    def travelled(self, course: Course, begin: float, end: float) -> None:
        """An exchange was under way."""
        self._travel[course.layer] += end - begin
        self.trace.travelled(course.kind, begin, end, course.layer, course.micro_batch, course.rows)

    def read(self) -> tuple[np.ndarray, Traffic]:
        """Seconds in each stage, `[stages]` float64, and the traffic of each layer, since the last call."""
        found = np.array(list(self._seconds.values())), Traffic(self._travel, self._exposed, self._bytes)
        self._begin_anew()
        return found
