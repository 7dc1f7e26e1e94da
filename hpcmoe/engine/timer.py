"""When a GPU worked at what, by events on its stream."""

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import cupy

Tell = Callable[[str, float, float, int, int, int], None]
"""(stage, begin, end in seconds of `time.perf_counter`, layer, micro-batch, rows): a stage that is over"""


@dataclass(frozen=True)
class Stage:
    """Work on the stream, between two events."""

    name: str
    begin: cupy.cuda.Event
    end: cupy.cuda.Event
    layer: int
    micro_batch: int
    rows: int


class Timer:
    """The stages of one stream, told of once they are over."""

    def __init__(self, stream: cupy.cuda.Stream) -> None:
        self._stream, self._pending, self._worked = stream, deque[Stage](), 0.0
        self.tell: Tell = lambda *stage: None
        self.inside = False
        """whether a stage is under way"""
        self._zero = cupy.cuda.Event()
        self._zero.record(stream)
        self._zero.synchronize()
        self._at_zero = time.perf_counter()

    @contextmanager
    def stage(self, name: str, layer: int, micro_batch: int, rows: int) -> Iterator[None]:
        """What the block gives to the stream counts for stage `name`."""
        begin, end = cupy.cuda.Event(), cupy.cuda.Event()
        begin.record(self._stream)
        self.inside = True
        try:
            yield
        finally:
            self.inside = False
        end.record(self._stream)
        self._pending.append(Stage(name, begin, end, layer, micro_batch, rows))

    def busy(self) -> float:
        """Seconds that the stream has worked, up to now; see `stream.Stream`."""
        while self._pending and self._pending[0].end.done:
            stage = self._pending.popleft()
            begin, end = self._when(stage.begin), self._when(stage.end)
            self._worked += end - begin
            self.tell(stage.name, begin, end, stage.layer, stage.micro_batch, stage.rows)
        if self._pending and self._pending[0].begin.done:
            return self._worked + max(0.0, time.perf_counter() - self._when(self._pending[0].begin))
        return self._worked

    def _when(self, event: cupy.cuda.Event) -> float:
        return self._at_zero + cupy.cuda.get_elapsed_time(self._zero, event) / 1000
