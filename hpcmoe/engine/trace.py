"""What each rank did when, for `run --trace`: spans in memory, on a clock that all ranks share, then one file.

A span that PyPI's `nvtx` can show to a profiler is pushed there too, under the same name.
"""

import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from hpcmoe.files import trace
from hpcmoe.files.trace import NAMES, SPAN, Span
from hpcmoe.launch import World, together

LIMIT = 1 << 20
"""Spans of all ranks together: about what a viewer can show."""
PINGS = 20


class Silent:
    """The trace of a run that is not traced."""

    def begin_step(self, step: int) -> None:
        """See `Trace`."""

    def open(self, name: str) -> None:
        """See `Trace`."""

    def close(self) -> None:
        """See `Trace`."""

    def depart(self, kind: str) -> Any:
        """See `Trace`."""

    def arrive(self, departed: Any) -> None:
        """See `Trace`."""

    def computed(self, name: str, begin: float, end: float, layer: int, micro_batch: int) -> None:
        """See `Trace`."""

    def waited(self, kind: str, begin: float, end: float, layer: int, micro_batch: int) -> None:
        """See `Trace`."""

    def travelled(self, kind: str, begin: float, end: float, layer: int, micro_batch: int, rows: int) -> None:
        """See `Trace`."""

    def write(self, world: World, path: Path) -> None:
        """See `Trace`."""


class Trace:
    """Spans of one rank. Collective over the world."""

    def __init__(self, world: World) -> None:
        self._spans: list[Span] = []
        self._room, self._step = LIMIT // world.size, 0
        self._nvtx = None
        with suppress(ImportError):
            import nvtx
            self._nvtx = nvtx
        self._aligned = [offset(world)]

    def begin_step(self, step: int) -> None:
        """What follows belongs to `step`."""
        self._step = step

    def open(self, name: str) -> None:
        """A stage begins on this thread: for profilers."""
        if self._nvtx:
            self._nvtx.push_range(name, domain="hpcmoe")

    def close(self) -> None:
        """It ends."""
        if self._nvtx:
            self._nvtx.pop_range(domain="hpcmoe")

    def depart(self, kind: str) -> Any:
        """An exchange begins: for profilers. What it gives is for `arrive`."""
        return self._nvtx and self._nvtx.start_range(kind, domain="hpcmoe")

    def arrive(self, departed: Any) -> None:
        """It ends."""
        if self._nvtx:
            self._nvtx.end_range(departed)

    def computed(self, name: str, begin: float, end: float, layer: int, micro_batch: int) -> None:
        """A stage of the arithmetic."""
        self._add("pack" if name == "pack" else "compute", name, begin, end, layer, micro_batch, -1)

    def waited(self, kind: str, begin: float, end: float, layer: int, micro_batch: int) -> None:
        """The main thread had nothing to do but wait."""
        self._add("wait", kind, begin, end, layer, micro_batch, -1)

    def travelled(self, kind: str, begin: float, end: float, layer: int, micro_batch: int, rows: int) -> None:
        """An exchange was under way; those of several micro-batches overlap, so each has a row of its own."""
        self._add(f"exchange {micro_batch}", kind, begin, end, layer, micro_batch, rows)

    def _add(self, row: str, name: str, begin: float, end: float, layer: int, micro_batch: int, rows: int) -> None:
        if len(self._spans) < self._room:
            self._spans.append((trace.row_number(row), NAMES.index(name), begin, end, self._step, layer, micro_batch,
                                rows))

    def write(self, world: World, path: Path) -> None:
        """Writes the spans of all ranks. Collective. Raises `Agreed` where the file cannot be written."""
        self._aligned.append(offset(world))
        if len(self._spans) == self._room and world.rank == 0:
            print(f"hpcmoe: warning: the trace is full: it ends in step {self._spans[-1][4]}", file=sys.stderr)
        start = world.comm.bcast(self._aligned[0][0])
        mine = self._shared_time(np.array(self._spans, SPAN), start)
        together(world, lambda: trace.write(path, world.hosts, _one_by_one(world, mine)) if world.rank == 0 else
                 world.comm.send(mine, 0))

    def _shared_time(self, spans: np.ndarray, start: float) -> np.ndarray:
        """The same in seconds since `start` on rank 0's clock: offsets were measured at the beginning and the end."""
        (first, early), (last, late) = self._aligned
        for name in ("begin", "end"):
            part = (spans[name] - first) / max(last - first, 1e-9)
            spans[name] += early + part * (late - early) - start
        return spans


def _one_by_one(world: World, mine: np.ndarray) -> Iterator[np.ndarray]:
    """The spans of each rank in turn, on rank 0."""
    yield mine
    for rank in range(1, world.size):
        yield world.comm.recv(source=rank)


def offset(world: World) -> tuple[float, float]:
    """(this rank's time now, seconds to add to it for rank 0's), by the quickest of some pings. Collective."""
    found = 0.0
    for rank in range(1, world.size):
        if world.rank == rank:
            found = min(_ping(world) for _ in range(PINGS))[1]
        elif world.rank == 0:
            for _ in range(PINGS):
                world.comm.recv(source=rank)
                world.comm.send(time.perf_counter(), rank)
    return time.perf_counter(), found


def _ping(world: World) -> tuple[float, float]:
    """(round trip, offset) seconds."""
    begin = time.perf_counter()
    world.comm.send(None, 0)
    there = world.comm.recv(source=0)
    end = time.perf_counter()
    return end - begin, there - (begin + end) / 2
