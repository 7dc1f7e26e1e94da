"""What `hpcmoe probe` found out: probe.h5.

    way/transport, mode, verdict [n]: what was tried, and one of `VERDICTS` on it
    exchange/size, alltoallv, persistent [m]: one direction of the exchange by the transport that `auto` takes
    step/rows, whole, halves [k]: a step as one micro-batch, and as two that take turns
    hop/rows, flat, twohop [h]: dispatch and return straight, and in two hops; attribute nodes: between so many nodes
    host [R]
    attributes: ranks, library, units (uint16 of a row), model (its name), versions
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hpcmoe.errors import InputError
from hpcmoe.files import h5, vet
from hpcmoe.types import MODES, TRANSPORTS, Cuts, Hops, Speeds

VERDICTS = WORKS, WRONG, ENDED = "works", "wrong", "ended"
"""Rows come whole; rows come damaged; the process that tried it was ended."""
Verdicts = dict[tuple[str, str], str]
"""By (transport, mode): one of `VERDICTS`; what was not tried is not in it"""


@dataclass(frozen=True)
class Probe:
    """What was found on these ranks."""

    host: tuple[str, ...]
    """`[R]`: of each rank"""
    library: str
    """the MPI library's version"""
    units: int
    """uint16 values of a row"""
    model: str
    """its name"""
    verdicts: Verdicts
    speeds: Speeds | None = None
    """by the transport that `auto` takes; None as long as it was not measured"""
    cuts: Cuts | None = None
    hops: Hops | None = None
    """None where two hops make no sense"""
    nodes: int = 1
    """on which the ranks are"""

    def works(self, transport: str, mode: str = "auto") -> bool:
        """Whether rows come whole so; "auto" asks for any mode."""
        return any(self.verdicts.get((transport, m)) == WORKS for m in (MODES if mode == "auto" else (mode,)))

    def best(self, mode: str = "auto") -> str:
        """The transport that `exchange.transport = "auto"` takes for a mode, or "auto": the first that works.

        Raises `InputError` where none does.
        """
        found = [transport for transport in TRANSPORTS if self.works(transport, mode)]
        if not found:
            what = "transport that works" if mode == "auto" else f"transport by which exchange.mode {mode} works"
            tried = ", ".join(f"{m} by {transport}: {verdict}" for (transport, m), verdict in self.verdicts.items())
            raise InputError(f"the probe found no {what} ({tried}): run hpcmoe probe again, or try another MPI library")
        return found[0]


def write(path: Path, probe: Probe, versions: str) -> None:
    """Raises `JobError` where `path` cannot be written."""
    with h5.writing(path, "probe") as file:
        file.attrs.update(ranks=len(probe.host), library=probe.library, units=probe.units, model=probe.model,
                          versions=versions)
        h5.put_strings(file, "host", probe.host, "host of each rank")
        for column, name in enumerate(("transport", "mode")):
            h5.put_strings(file, f"way/{name}", [way[column] for way in probe.verdicts], f"exchange.{name}")
        h5.put_strings(file, "way/verdict", list(probe.verdicts.values()),
                       "whether rows came whole (works) or not (wrong), or the process was ended that tried it (ended)")
        if probe.speeds:
            h5.put(file, "exchange/size", probe.speeds.size, "bytes from each rank to each other [B]")
            for mode in MODES:
                h5.put(file, f"exchange/{mode}", getattr(probe.speeds, mode), f"one direction by {mode} [s]")
        if probe.cuts:
            h5.put(file, "step/rows", probe.cuts.rows, "tokens of a step on each rank")
            h5.put(file, "step/whole", probe.cuts.whole, "the step as one micro-batch [s]")
            h5.put(file, "step/halves", probe.cuts.halves, "the step as two micro-batches that take turns [s]")
        if probe.hops:
            h5.put(file, "hop/rows", probe.hops.rows, "tokens on each rank")
            h5.put(file, "hop/flat", probe.hops.flat, "dispatch and return straight [s]")
            h5.put(file, "hop/twohop", probe.hops.twohop, "dispatch and return in two hops [s]")
            file.attrs["nodes"] = probe.nodes


def read(path: Path) -> Probe:
    """Raises `InputError`."""
    vet.check(path, "probe")
    with h5.reading(path, "probe") as file:
        speeds = cuts = hops = None
        nodes = 1
        if "exchange" in file:
            speeds = Speeds(*_columns(file, path, "exchange/size", "exchange/alltoallv", "exchange/persistent"))
        if "step" in file:
            cuts = Cuts(*_by_rows(file, path, "step", "whole", "halves"))
        if "hop" in file:
            hops, nodes = Hops(*_by_rows(file, path, "hop", "flat", "twohop")), h5.attribute(file, "nodes", path, int)
        return Probe(tuple(h5.strings(file, "host", path)), h5.attribute(file, "library", path, str),
                     h5.attribute(file, "units", path, int), h5.attribute(file, "model", path, str),
                     _verdicts(file, path), speeds, cuts, hops, nodes)


def _verdicts(file, path: Path) -> Verdicts:
    verdicts = h5.strings(file, "way/verdict", path)
    transports, modes = (h5.strings(file, f"way/{name}", path, len(verdicts)) for name in ("transport", "mode"))
    if unknown := set(verdicts) - set(VERDICTS):
        raise InputError(f"{path}: {unknown.pop()} is no verdict on a way: make the file again")
    return dict(zip(zip(transports, modes), verdicts))


def _by_rows(file, path: Path, group: str, *names: str) -> list[np.ndarray]:
    """The numbers of rows, and what was measured with each."""
    rows = h5.take(file, f"{group}/rows", path, np.integer, 1)
    columns = _columns(file, path, *(f"{group}/{name}" for name in names))
    if len(rows) != len(columns[0]) or rows.min() < 1:
        raise InputError(f"{path}: the datasets in {group} do not fit each other: make the file again")
    return [rows, *columns]


def _columns(file, path: Path, *names: str) -> list[np.ndarray]:
    columns = [h5.take(file, name, path, np.floating, 1) for name in names]
    if len({len(column) for column in columns}) > 1 or not len(columns[0]):
        raise InputError(f"{path}: {names[0]} and its neighbours differ in length or are empty: make the file again")
    if not all((np.isfinite(column) & (column > 0)).all() for column in columns):
        raise InputError(f"{path}: {names[0]} or its neighbours have times that cannot be: make the file again")
    return columns
