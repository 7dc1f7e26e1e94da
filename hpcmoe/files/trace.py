"""out.trace.json: what each rank did when, in the trace event format that ui.perfetto.dev and chrome://tracing read.

A process is a rank; its threads are rows: compute, pack, wait, and one for the exchanges of each micro-batch.
"""

import contextlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from hpcmoe.errors import JobError
from hpcmoe.types import STAGES

NAMES = (*STAGES, "dispatch", "return")
ROWS = ("compute", "pack", "wait")
"""Behind them comes "exchange N" for micro-batch N."""
Span = tuple[int, int, float, float, int, int, int, int]
SPAN = np.dtype([("row", "u2"), ("name", "u1"), ("begin", "f8"), ("end", "f8"), ("step", "i4"), ("layer", "i4"),
                 ("micro_batch", "i2"), ("rows", "i8")])
"""Times in seconds; -1 where a number does not apply."""
ARGUMENTS = ("step", "layer", "micro_batch", "rows")


def row_number(name: str) -> int:
    """Its place among the rows of a rank."""
    return ROWS.index(name) if name in ROWS else len(ROWS) + int(name.split()[1])


def row_name(number: int) -> str:
    """The other way round."""
    return ROWS[number] if number < len(ROWS) else f"exchange {number - len(ROWS)}"


def write(path: Path, hosts: Sequence[str], ranks: Iterable[np.ndarray]) -> None:
    """Writes the spans of each rank, `[n]` of `SPAN`, whole or not at all. Raises `JobError`."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with unfinished.open("w") as file:
            file.write('{"displayTimeUnit": "ms", "traceEvents": [')
            comma = ""
            for rank, spans in enumerate(ranks):
                for event in _events(rank, hosts[rank], spans):
                    file.write(f"{comma}\n{json.dumps(event)}")
                    comma = ","
            file.write("\n]}\n")
        unfinished.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            unfinished.unlink()
        raise JobError(f"trace {path} cannot be written: {error.strerror or error}") from None


def _events(rank: int, host: str, spans: np.ndarray) -> Iterable[dict]:
    yield {"ph": "M", "name": "process_name", "pid": rank, "tid": 0, "ts": 0,
           "args": {"name": f"rank {rank} on {host}"}}
    yield {"ph": "M", "name": "process_sort_index", "pid": rank, "tid": 0, "ts": 0, "args": {"sort_index": rank}}
    for row in np.unique(spans["row"]).tolist():
        yield {"ph": "M", "name": "thread_name", "pid": rank, "tid": row, "ts": 0, "args": {"name": row_name(row)}}
    for row, name, begin, end, *numbers in spans.tolist():
        yield {"ph": "X", "name": NAMES[name], "pid": rank, "tid": row, "ts": round(begin * 1e6, 3),
               "dur": round((end - begin) * 1e6, 3),
               "args": {key: number for key, number in zip(ARGUMENTS, numbers) if number >= 0}}
