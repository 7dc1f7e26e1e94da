"""out.trace.json: what each rank did when, in Chrome's trace event format, for ui.perfetto.dev and chrome://tracing.

A process is a rank, its threads are the rows of `ROWS`; "exchange" is one row for each micro-batch, for their flights
overlap. Times are microseconds of rank 0's clock since the trace began. `otherData` says which steps are whole on all
ranks, and how well each rank's clock is known.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from json import dumps
from pathlib import Path
from typing import IO

import numpy as np

from hpcmoe import __version__
from hpcmoe.files import place
from hpcmoe.traffic import CLASSES
from hpcmoe.types import STAGES

ROWS = ("step", "compute", "pack", "wait", "exchange")
NAMES = ("step", *STAGES, "start", "counts", "dispatch", "return", "vote", "compute", "gather", "bring")
"""What a span may be: a step; a stage; on the row "wait" the start of an exchange, an exchange, a vote of all ranks, or
work on the stream; on the rows "exchange" a dispatch or a return."""
SPAN = np.dtype([("begin", "f8"), ("end", "f8"), ("sent", "i8", len(CLASSES)), ("step", "i4"), ("rows", "i4"),
                 ("layer", "i2"), ("micro_batch", "i2"), ("row", "u1"), ("name", "u1")])
"""A span of time of one rank, in seconds; -1 where layer, micro_batch or rows have no sense."""


@dataclass(frozen=True)
class RankTrace:
    """What one rank recorded."""

    rank: int
    host: str
    spans: np.ndarray
    """`[n]` of `SPAN`, on rank 0's clock"""
    steps: int
    """whole steps, from the first"""
    of: int
    """steps that it ran"""
    within: float
    """so far at most its clock was off [s]"""


def beside(output: Path) -> Path:
    """Where the trace of the run that writes `output` goes."""
    return output.with_suffix(".trace.json")


def write(path: Path, ranks: Iterable[RankTrace], begin: float) -> tuple[int, int]:
    """Writes what `ranks` recorded since `begin`, one rank after another; returns the steps that are whole on all of
    them, and how many ran. Raises `JobError` where the file cannot be written."""
    with place.writing(path) as file:
        return _write(file, ranks, begin)


def _write(file: IO[str], ranks: Iterable[RankTrace], begin: float) -> tuple[int, int]:
    told, within = [], []
    file.write('{"traceEvents": [')
    before = "\n"
    for rank in ranks:
        for event in _events(rank, begin):
            file.write(before + event)
            before = ",\n"
        told.append((rank.steps, rank.of))
        within.append(round(rank.within * 1e6, 3))
    of = max(ran for _, ran in told)  # groups of ranks have steps of their own
    steps = min((whole for whole, ran in told if whole < ran), default=of)
    about = {"creator": f"hpcmoe {__version__}", "steps": of, "whole_steps": steps, "clock_within_us": within}
    file.write(f'\n],\n"displayTimeUnit": "ms",\n"otherData": {dumps(about)}}}\n')
    return steps, of


def _events(rank: RankTrace, begin: float) -> Iterator[str]:
    """JSON objects: the names of the rank and its rows, then its spans."""
    yield _name(rank.rank, 0, "process_name", name=f"rank {rank.rank} on {rank.host}")
    yield _name(rank.rank, 0, "process_sort_index", sort_index=rank.rank)
    flights = rank.spans["micro_batch"][rank.spans["row"] == ROWS.index("exchange")]
    exchanges = [f"exchange {n}" for n in range(int(flights.max(initial=0)) + 1)]
    for row, name in enumerate((*ROWS[:-1], *exchanges)):
        yield _name(rank.rank, row, "thread_name", name=name)
        yield _name(rank.rank, row, "thread_sort_index", sort_index=row)
    # whole nanoseconds, so that spans that touch do not overlap when their beginning and length are rounded
    times = [np.rint((rank.spans[which] - begin) * 1e9).astype(np.int64).tolist() for which in ("begin", "end")]
    for first, last, span in zip(*times, rank.spans.tolist()):
        yield _event(rank.rank, first, last, span)


def _name(pid: int, tid: int, kind: str, **what: str | int) -> str:
    return dumps({"name": kind, "ph": "M", "ts": 0, "pid": pid, "tid": tid, "args": what})


def _event(pid: int, first: int, last: int, span: tuple) -> str:
    _, _, sent, step, rows, layer, micro_batch, row, name = span
    flies = ROWS[row] == "exchange"
    known = [("step", step), ("layer", layer), ("micro_batch", micro_batch), ("rows", rows)]
    args = [f'"{key}": {value}' for key, value in known if value >= 0]
    if flies:
        args += [f'"bytes to {there}": {count}' for there, count in zip(CLASSES, sent)]
    tid = row + micro_batch if flies else row
    return (f'{{"name": "{NAMES[name]}", "ph": "X", "ts": {_micro(first)}, "dur": {_micro(last - first)}, '
            f'"pid": {pid}, "tid": {tid}, "args": {{{", ".join(args)}}}}}')


def _micro(nanoseconds: int) -> str:
    """As microseconds: exact, where a float would round."""
    return f"{nanoseconds // 1000}.{nanoseconds % 1000:03d}"
