"""What lies between ranks, as measured: topology.h5.

    node [R]: the node of each rank
    latency, rate [R, R]: from and to; 0 and inf on the diagonal
    attributes: library
"""

from pathlib import Path

import numpy as np

from hpcmoe.errors import InputError
from hpcmoe.files import h5, vet
from hpcmoe.slots import Topology

LONGEST, SLOWEST = 3600.0, 1.0
"""Seconds and bytes/s of a link."""


def write(path: Path, topology: Topology, library: str) -> None:
    """library: the MPI library's version. Raises `JobError` where `path` cannot be written."""
    with h5.writing(path, "topology") as file:
        file.attrs["library"] = library
        h5.put(file, "node", topology.node, "node of each rank")
        h5.put(file, "latency", topology.latency, "latency from each rank to each other [s]")
        h5.put(file, "rate", topology.rate, "rate from each rank to each other [B/s]")


def read(path: Path) -> Topology:
    """Raises `InputError`."""
    vet.check(path, "topology")
    with h5.reading(path, "topology") as file:
        node = nodes(file, path)
        latency, rate = (h5.take(file, name, path, np.floating, 2) for name in ("latency", "rate"))
    if latency.shape != rate.shape or rate.shape != (len(node), len(node)):
        raise InputError(f"{path}: latency and rate do not fit its {len(node)} ranks: make the file again")
    own = np.eye(len(node), dtype=bool)
    latency, rate = np.where(own, 0, latency).astype(np.float64), np.where(own, np.inf, rate).astype(np.float64)
    if not ((latency >= 0) & (latency <= LONGEST) & (rate >= SLOWEST)).all() or np.isinf(rate[~own]).any():
        raise InputError(f"{path}: latency or rate has values that cannot be: make the file again")
    return Topology(node, latency, rate)


def nodes(file, path: Path) -> np.ndarray:
    """`[R]` int32: the dataset `node`, checked. Raises `InputError`."""
    node = h5.take(file, "node", path, np.integer, 1)
    numbers, firsts = np.unique(node, return_index=True)
    if not len(node) or not np.array_equal(numbers[np.argsort(firsts)], np.arange(len(numbers))):
        raise InputError(f"{path}: node does not number nodes from 0 in the order of their first ranks: make the file "
                         "again")
    return node.astype(np.int32)
