"""What `hpcmoe probe` found out: probe.h5.

    transport/name, works [n]; transport/chosen: those that were tried, and that which `auto` takes
    exchange/size, alltoallv, persistent [m]: one direction of the exchange by the chosen transport
    step/rows, whole, halves [k]: a step as one micro-batch, and as two that take turns
    host [R]
    attributes: ranks, library, units (uint16 of a row), model (its name), versions
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hpcmoe.errors import InputError
from hpcmoe.files import h5
from hpcmoe.types import MODES, Cuts, Speeds


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
    works: dict[str, bool]
    """by transport: whether rows came whole; False also where it ended the process that tried it"""
    speeds: Speeds | None = None
    """by the transport that `auto` takes; None as long as it was not measured"""
    cuts: Cuts | None = None

    def best(self) -> str:
        """The transport that `exchange.transport = "auto"` takes: the first that works.

        Raises `InputError` where none does.
        """
        found = [name for name, right in self.works.items() if right]
        if not found:
            raise InputError(f"the probe found no transport that works ({', '.join(self.works)} failed): run hpcmoe "
                             "probe again, or try another MPI library")
        return found[0]


def write(path: Path, probe: Probe, versions: str) -> None:
    """Raises `JobError` where `path` cannot be written."""
    with h5.writing(path, "probe") as file:
        file.attrs.update(ranks=len(probe.host), library=probe.library, units=probe.units, model=probe.model,
                          versions=versions)
        h5.put_strings(file, "host", probe.host, "host of each rank")
        h5.put_strings(file, "transport/name", list(probe.works), "transports in the order in which auto takes them")
        h5.put(file, "transport/works", np.array(list(probe.works.values()), np.uint8), "whether rows came whole")
        if probe.speeds:
            h5.put(file, "exchange/size", probe.speeds.size, "bytes from each rank to each other [B]")
            for mode in MODES:
                h5.put(file, f"exchange/{mode}", getattr(probe.speeds, mode), f"one direction by {mode} [s]")
        if probe.cuts:
            h5.put(file, "step/rows", probe.cuts.rows, "tokens of a step on each rank")
            h5.put(file, "step/whole", probe.cuts.whole, "the step as one micro-batch [s]")
            h5.put(file, "step/halves", probe.cuts.halves, "the step as two micro-batches that take turns [s]")


def read(path: Path) -> Probe:
    """Raises `InputError`."""
    with h5.reading(path, "probe") as file:
        works = h5.take(file, "transport/works", path, np.integer, 1)
        names = h5.strings(file, "transport/name", path, len(works))
        speeds = cuts = None
        if "exchange" in file:
            speeds = Speeds(*_columns(file, path, "exchange/size", "exchange/alltoallv", "exchange/persistent"))
        if "step" in file:
            rows = h5.take(file, "step/rows", path, np.integer, 1)
            cuts = Cuts(rows, *_columns(file, path, "step/whole", "step/halves"))
            if len(rows) != len(cuts.whole):
                raise InputError(f"{path}: the datasets in step differ in length: make the file again")
        return Probe(tuple(h5.strings(file, "host", path)), h5.attribute(file, "library", path, str),
                     h5.attribute(file, "units", path, int), h5.attribute(file, "model", path, str),
                     dict(zip(names, (works > 0).tolist())), speeds, cuts)


def _columns(file, path: Path, *names: str) -> list[np.ndarray]:
    columns = [h5.take(file, name, path, np.floating, 1) for name in names]
    if len({len(column) for column in columns}) > 1 or not len(columns[0]):
        raise InputError(f"{path}: {names[0]} and its neighbours differ in length or are empty: make the file again")
    return columns
