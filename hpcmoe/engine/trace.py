"""What each rank did when: recorded where a run asks for it, and written when it ends.

The same names are NVTX ranges, for NVIDIA's profilers, where the package nvtx is installed.
"""

import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from hpcmoe.engine.align import Offset, aligned, measure
from hpcmoe.files import trace
from hpcmoe.files.trace import NAMES, ROWS, SPAN, RankTrace
from hpcmoe.launch import Idle, World, on_root

MOST = 1_000_000
"""Spans of all ranks together: about 200 MB of JSON, and what a browser can show."""
TAG = 78


class Untraced:
    """Records nothing: the trace of a run that nobody traces."""

    step = 0
    """the step that is under way, or how many there were"""

    def push(self, name: str) -> None:
        """A span begins on this thread; `pop` ends the last one."""

    def pop(self, row: str, name: str, begin: float, end: float, layer: int = -1, micro_batch: int = -1,
            rows: int = -1) -> None:
        """A span of `time.perf_counter` on one of `files.trace.ROWS` ends."""

    def add(self, row: str, name: str, begin: float, end: float, layer: int, micro_batch: int, rows: int,
            sent: np.ndarray | int = 0) -> None:
        """A span that is over; sent `[len(CLASSES)]` int64 bytes."""

    def start(self, name: str) -> Any:
        """A span begins that others may overlap; what is returned is for `finish`."""

    def finish(self, span: Any, row: str, name: str, begin: float, end: float, layer: int, micro_batch: int, rows: int,
               sent: np.ndarray) -> None:
        """It ends; sent `[len(CLASSES)]` int64 bytes."""

    def align(self, comm, idle: Idle) -> None:
        """Measures the clocks: to be called before the first step, and behind the last. Collective."""

    def write(self, world: World, path: Path) -> None:
        """Writes what all ranks recorded. Collective. Raises `Agreed` where `path` cannot be written."""


class Trace(Untraced):
    """Records, until it is full. Spans may come from several threads."""

    def __init__(self, limit: int) -> None:
        """`limit` spans at most."""
        self._spans, self._count, self._full = np.zeros(limit, SPAN), itertools.count(), -1
        self._offsets: list[Offset] = []
        self._domain = _domain()

    def push(self, name: str) -> None:
        """See `Untraced`."""
        if self._domain:
            self._domain.push_range(self._domain.get_event_attributes(name))

    def pop(self, row: str, name: str, begin: float, end: float, layer: int = -1, micro_batch: int = -1,
            rows: int = -1) -> None:
        """See `Untraced`."""
        if self._domain:
            self._domain.pop_range()
        self.add(row, name, begin, end, layer, micro_batch, rows)

    def start(self, name: str) -> Any:
        """See `Untraced`."""
        return self._domain.start_range(self._domain.get_event_attributes(name)) if self._domain else None

    def finish(self, span: Any, row: str, name: str, begin: float, end: float, layer: int, micro_batch: int, rows: int,
               sent: np.ndarray) -> None:
        """See `Untraced`."""
        if self._domain:
            self._domain.end_range(span)
        self.add(row, name, begin, end, layer, micro_batch, rows, sent)

    def add(self, row: str, name: str, begin: float, end: float, layer: int, micro_batch: int, rows: int,
            sent: np.ndarray | int = 0) -> None:
        """See `Untraced`."""
        number = next(self._count)  # one operation, so that two threads never get the same
        if number < len(self._spans):
            self._spans[number] = (begin, end, sent, self.step, rows, layer, micro_batch, ROWS.index(row),
                                   NAMES.index(name))
        elif self._full < 0:
            self._full = self.step

    def align(self, comm, idle: Idle) -> None:
        """See `Untraced`."""
        self._offsets.append(measure(comm, idle))

    def mine(self, world: World) -> RankTrace:
        """What this rank recorded."""
        first, last = self._offsets
        spans = self._spans[:next(self._count)]
        for which in ("begin", "end"):
            spans[which] = aligned(spans[which], first, last)
        of = self.step
        return RankTrace(world.rank, world.hosts[world.rank], spans, of if self._full < 0 else self._full, of,
                         max(first.within, last.within))

    def write(self, world: World, path: Path) -> None:
        """See `Untraced`."""
        if self._offsets:  # else there was no step
            if world.rank:
                _send(world.comm, self.mine(world))
            on_root(world, lambda: self._write(world, path))

    def _write(self, world: World, path: Path) -> None:
        ranks = _gather(world.comm, self.mine(world))
        try:
            steps, of = trace.write(path, ranks, self._offsets[0].at)
        finally:
            for _ in ranks:  # the others wait until they are rid of theirs
                pass
        covers = f"{of} steps" if steps == of else f"the first {steps} of {of} steps, then it was full"
        print(f"hpcmoe: {path} covers {covers}; open it in ui.perfetto.dev", file=sys.stderr, flush=True)


def open_trace(ranks: int) -> Trace:
    """A trace with this rank's share of `MOST`."""
    return Trace(MOST // ranks)


def _domain() -> Any:
    try:
        import nvtx
    except ImportError:
        return None
    return nvtx.get_domain("hpcmoe")


def _send(comm, mine: RankTrace) -> None:
    """To rank 0: everything but the spans, then those."""
    comm.send((mine.rank, mine.host, len(mine.spans), mine.steps, mine.of, mine.within), 0, TAG)
    comm.Send(mine.spans.view(np.uint8), 0, TAG)


def _gather(comm, mine: RankTrace) -> Iterator[RankTrace]:
    """On rank 0: its own, then those of the others, one after another."""
    yield mine
    for source in range(1, comm.size):
        rank, host, count, steps, of, within = comm.recv(source=source, tag=TAG)
        spans = np.zeros(count, SPAN)
        comm.Recv(spans.view(np.uint8), source, TAG)
        yield RankTrace(rank, host, spans, steps, of, within)
