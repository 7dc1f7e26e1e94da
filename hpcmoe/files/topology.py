"""What lies between ranks, as `bench topology` measured it: topology.h5.

    node [R]: the node of each rank
    latency, rate [R, R]: from and to; 0 and inf on the diagonal
    host, address, pattern [R]: host of each rank, and what Slurm said of the switches above it (see `switches`)
    attributes: ranks, nodes (how many), library, memory (where messages lay: host or device)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from hpcmoe import switches
from hpcmoe.array import MEMORY
from hpcmoe.errors import InputError
from hpcmoe.files import h5, vet
from hpcmoe.slots import Topology

LONGEST, SLOWEST, FASTEST = 3600.0, 1.0, 1e18
"""Seconds, and bytes/s, of a link: what is beyond was not measured."""


@dataclass(frozen=True)
class Network:
    """What lies between ranks, and where that was measured."""

    topology: Topology
    host: Sequence[str]
    """`[R]`: of each rank"""
    address: Sequence[str]
    """`[R]`: of each rank's node, as Slurm has it; "" where it does not tell"""
    pattern: Sequence[str]
    """`[R]`: what the parts of the address are"""
    library: str
    memory: str = "host"
    """where messages lay: one of `array.MEMORY`"""

    @cached_property
    def leaf(self) -> np.ndarray:
        """`[R]` int32: the leaf switch of each rank, numbered from 0 in the order of their first ranks."""
        paths = [switches.above(*told) for told in zip(self.address, self.pattern)]
        return switches.leaves(paths, self.topology.node.tolist())


def write(path: Path, network: Network) -> None:
    """Raises `JobError` where `path` cannot be written."""
    topology = network.topology
    with h5.writing(path, "topology") as file:
        file.attrs.update(ranks=topology.ranks, nodes=topology.nodes, library=network.library, memory=network.memory)
        h5.put(file, "node", topology.node, "node of each rank")
        h5.put(file, "latency", topology.latency, "latency from each rank to each other [s]")
        h5.put(file, "rate", topology.rate, "rate from each rank to each other [B/s]")
        h5.put_strings(file, "host", network.host, "host of each rank")
        h5.put_strings(file, "address", network.address, "SLURM_TOPOLOGY_ADDR of each rank")
        h5.put_strings(file, "pattern", network.pattern, "SLURM_TOPOLOGY_ADDR_PATTERN of each rank")


def read(path: Path) -> Network:
    """Raises `InputError`."""
    vet.check(path, "topology")
    with h5.reading(path, "topology") as file:
        node = nodes(file, path)
        latency = _table(file, "latency", path, len(node), 0.0, (np.finfo(float).tiny, LONGEST))
        rate = _table(file, "rate", path, len(node), np.inf, (SLOWEST, FASTEST))
        host, address, pattern = (h5.strings(file, name, path, len(node)) for name in ("host", "address", "pattern"))
        memory = h5.attribute(file, "memory", path, str)
        if memory not in MEMORY:
            raise InputError(f"{path}: {memory!r} is no memory that messages lie in: make the file again")
        return Network(Topology(node, latency, rate), host, address, pattern,
                       h5.attribute(file, "library", path, str), memory)


def nodes(file, path: Path) -> np.ndarray:
    """`[R]` int32: the dataset `node`, checked. Raises `InputError`."""
    node = h5.take(file, "node", path, np.integer, 1)
    numbers, firsts = np.unique(node, return_index=True)
    if not len(node) or not np.array_equal(numbers[np.argsort(firsts)], np.arange(len(numbers))):
        raise InputError(f"{path}: node does not number nodes from 0 in the order of their first ranks: make the file "
                         "again")
    return node.astype(np.int32)


def _table(file, name: str, path: Path, ranks: int, diagonal: float, bounds: tuple[float, float]) -> np.ndarray:
    """`[R, R]` float64: `diagonal` between a rank and itself, and else numbers within `bounds`."""
    found = h5.take(file, name, path, np.floating, 2).astype(np.float64)
    if found.shape != (ranks, ranks):
        raise InputError(f"{path}: {name} is {found.shape[0]} × {found.shape[1]}, and there are {ranks} ranks: make "
                         "the file again")
    own = np.eye(ranks, dtype=bool)
    others = found[~own]
    if not (found[own] == diagonal).all() or not ((others >= bounds[0]) & (others <= bounds[1])).all():
        raise InputError(f"{path}: {name} has values that cannot be measured: make the file again")
    return found
