"""What `bench exchange` measured: exchange.h5.

Columns of one table, all `[n]`: pattern (strings), rows (of a pair of ranks), size [B], and raw, alltoallv, request,
persistent, headers, pack [s]; host `[R]`, strings. Attributes: ranks, hosts (how many), library, hidden, dtype, rounds,
memory (where rows lie: host or device).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hpcmoe.errors import InputError
from hpcmoe.files import h5, vet


@dataclass(frozen=True)
class Figure:
    """One direction of one exchange: medians of seconds, each from the first rank's start to the last one's end."""

    pattern: str
    rows: int
    """from one rank to another"""
    size: int
    """bytes of these rows"""
    raw: float
    """`MPI_Ialltoallv` and its wait, nothing else"""
    alltoallv: float
    request: float
    """a persistent request of the same padded rows, alone; NaN where exact counts took over from it"""
    persistent: float
    headers: float
    pack: float


@dataclass(frozen=True)
class Table:
    """All figures of a run, and where it ran."""

    figures: Sequence[Figure]
    hidden: int
    dtype: str
    rounds: int
    host: Sequence[str]
    """`[R]`: of each rank"""
    library: str
    memory: str = "host"
    """where rows lie: one of `array.MEMORY`"""


NOTES = {
    "rows": "rows from one rank to another",
    "size": "bytes of the rows from one rank to another [B]",
    "raw": "median time of MPI_Ialltoallv alone on the same rows [s]",
    "alltoallv": "median time of exchange.mode alltoallv from start to completion [s]",
    "request": "median time of a persistent request of the same padded rows alone [s]",
    "persistent": "median time of exchange.mode persistent from start to completion [s]",
    "headers": "median time of the headers from start to completion [s]",
    "pack": "median time of packing the rows [s]",
}


def write(path: Path, table: Table) -> None:
    """Raises `JobError` where `path` cannot be written."""
    with h5.writing(path, "exchange") as file:
        file.attrs.update(ranks=len(table.host), hosts=len(set(table.host)), library=table.library,
                          hidden=table.hidden, dtype=table.dtype, rounds=table.rounds, memory=table.memory)
        h5.put_strings(file, "host", table.host, "host of each rank")
        h5.put_strings(file, "pattern", [f.pattern for f in table.figures], "which ranks send to which")
        for name, note in NOTES.items():
            h5.put(file, name, np.array([getattr(f, name) for f in table.figures]), note)


def read(path: Path) -> Table:
    """Raises `InputError`."""
    vet.check(path, "exchange")
    with h5.reading(path, "exchange") as file:
        patterns = h5.strings(file, "pattern", path)
        columns = {name: _column(file, name, path) for name in NOTES}
        if {len(column) for column in columns.values()} != {len(patterns)}:
            raise InputError(f"{path}: the columns differ in length: make the file again")
        figures = [Figure(pattern, *values) for pattern, *values in zip(patterns, *columns.values(), strict=True)]
        return Table(figures, h5.attribute(file, "hidden", path, int), h5.attribute(file, "dtype", path, str),
                     h5.attribute(file, "rounds", path, int), h5.strings(file, "host", path),
                     h5.attribute(file, "library", path, str), h5.attribute(file, "memory", path, str))


def _column(file, name: str, path: Path) -> list:
    kind = np.integer if name in ("rows", "size") else np.floating
    found = h5.take(file, name, path, kind, 1)
    if (found <= 0).any():  # NaN is what there was nothing to measure of
        raise InputError(f"{path}: {name} has values that cannot be measured: make the file again")
    return found.tolist()
