"""What `hpcmoe plan` decided: plan.h5.

    rank/data, expert/data, each with offsets [L + 1]: the slots of each layer, ascending by rank; none in dense layers
    node [R]: the node of each rank
    predicted/rows [L, R], bytes [L, 3], crossing [L], seconds [L, terms]: see `Prediction`; zeros in dense layers
    predicted/class [3], term [terms]: names
    weight/name, value, meaning [w]: how each term was weighed
    attributes: model (its name), experts, policy, seed, exchange, links (where latencies and rates are from)
"""

from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from itertools import pairwise
from pathlib import Path

import numpy as np

from hpcmoe.errors import InputError
from hpcmoe.files import h5, vet
from hpcmoe.files.topology import nodes
from hpcmoe.slots import Placement, Placements
from hpcmoe.tables import key
from hpcmoe.traffic import CLASSES

EXCHANGES = ("flat", "twohop")
"""What a plan is made for: rows go straight to their ranks; or to a node first, once for all its ranks."""
TERMS = ("compute", "same node", "other nodes", "latency")
"""What the time of a rank in a layer is the sum of."""
LINKS = ("measured", "assumed")
"""Where latencies and rates are from: a topology file, or this program's own figures."""


@dataclass(frozen=True)
class Weights:
    """How the terms of a prediction were weighed."""

    tokens: float = key(help="tokens of a step on each rank")
    row: float = key(help="bytes of a row")
    compute: float = key(help="seconds to compute a row of an expert")
    near_latency: float = key(help="latency inside a node, seconds; the median, as in the next ones")
    near_rate: float = key(help="rate inside a node, bytes/s")
    far_latency: float = key(help="latency between nodes, seconds")
    far_rate: float = key(help="rate between nodes, bytes/s")


@dataclass(frozen=True)
class Prediction:
    """What a step is expected to take, in each layer; zeros in dense layers."""

    rows: np.ndarray
    """`[L, R]` float64: rows that each rank computes"""
    bytes: np.ndarray
    """`[L, len(CLASSES)]` float64: bytes of the rows that all ranks send, there and back"""
    crossing: np.ndarray
    """`[L]` float64: rows that a token sends to other nodes, on its way there"""
    seconds: np.ndarray
    """`[L, len(TERMS)]` float64: of the slowest rank"""

    @property
    def layers(self) -> np.ndarray:
        """`[l]` int64: those with experts."""
        return np.flatnonzero(self.rows.any(axis=1))

    @property
    def total(self) -> float:
        """Seconds of the slowest ranks of all layers."""
        return float(self.seconds.sum())

    @property
    def imbalance(self) -> np.ndarray:
        """`[l]` float64, of `layers`: (max - mean) / mean of the rows of the ranks."""
        rows = self.rows[self.layers]
        return rows.max(axis=1) / rows.mean(axis=1) - 1


@dataclass(frozen=True)
class Plan:
    """Who holds what, for whom, and why."""

    model: str
    """its name"""
    experts: int
    placements: Placements
    """`[L]`; without slots in dense layers"""
    node: np.ndarray
    """`[R]` int32: the node of each rank"""
    policy: str
    seed: int
    exchange: str
    """one of `EXCHANGES`"""
    links: str
    """one of `LINKS`"""
    weights: Weights
    predicted: Prediction

    @property
    def ranks(self) -> int:
        return len(self.node)


NOTES = {
    "rows": "rows that each rank computes in a step, by layer and rank [rows]",
    "bytes": "bytes of the rows that all ranks send in a step, there and back, by layer and class [B]",
    "crossing": "rows that a token sends to other nodes on its way there, by layer [rows]",
    "seconds": "seconds of the slowest rank in a step, by layer and term [s]",
}


def write(path: Path, plan: Plan) -> None:
    """Raises `JobError` where `path` cannot be written."""
    with h5.writing(path, "plan") as file:
        file.attrs.update(model=plan.model, experts=plan.experts, policy=plan.policy, seed=plan.seed,
                          exchange=plan.exchange, links=plan.links)
        h5.put_ragged(file, "rank", [p.rank for p in plan.placements], "int32", "rank of each slot, by layer")
        h5.put_ragged(file, "expert", [p.expert for p in plan.placements], "int32", "expert in each slot, by layer")
        h5.put(file, "node", plan.node, "node of each rank")
        for name, note in NOTES.items():
            h5.put(file, f"predicted/{name}", getattr(plan.predicted, name), note)
        h5.put_strings(file, "predicted/class", CLASSES, "names of the classes of bytes")
        h5.put_strings(file, "predicted/term", TERMS, "names of the terms of seconds")
        h5.put_strings(file, "weight/name", [f.name for f in fields(Weights)], "names of the weights")
        h5.put_strings(file, "weight/meaning", [f.metadata["help"] for f in fields(Weights)], "what each weight is")
        h5.put(file, "weight/value", np.array(astuple(plan.weights)), "the weights, in the units that meaning says")


def read(path: Path) -> Plan:
    """Raises `InputError`."""
    vet.check(path, "plan")
    with h5.reading(path, "plan") as file:
        node, experts = nodes(file, path), h5.attribute(file, "experts", path, int)
        found = _placements(file, path, len(node), experts)
        exchange, links = (h5.attribute(file, name, path, str) for name in ("exchange", "links"))
        for said, known in ((exchange, EXCHANGES), (links, LINKS)):
            if said not in known:
                raise InputError(f"{path}: {said} should be {' or '.join(known)}: make the plan again")
        return Plan(h5.attribute(file, "model", path, str), experts, found, node,
                    h5.attribute(file, "policy", path, str), h5.attribute(file, "seed", path, int), exchange, links,
                    _weights(file, path), _prediction(file, path, len(found), len(node)))


def _placements(file, path: Path, ranks: int, experts: int) -> list[Placement]:
    """`[L]`, checked."""
    (rank, offsets), (expert, same) = h5.ragged(file, "rank", path), h5.ragged(file, "expert", path)
    if not np.array_equal(offsets, same):
        raise InputError(f"{path}: rank and expert differ in their layers: make the plan again")
    if ((rank < 0) | (rank >= ranks)).any() or ((expert < 0) | (expert >= experts)).any():
        raise InputError(f"{path}: slots are of ranks or experts beyond its {ranks} ranks and {experts} experts: make "
                         "the plan again")
    parts = [slice(a, b) for a, b in pairwise(offsets)]
    found = [Placement(ranks, rank[part].astype(np.int32), expert[part].astype(np.int32)) for part in parts]
    for layer, placement in enumerate(found):
        _check(placement, experts, f"{path}: layer {layer}")
    if not len(rank):
        raise InputError(f"{path} has no slots: make the plan again")
    return found


def _check(placement: Placement, experts: int, where: str) -> None:
    """Raises `InputError` where a layer that has slots is none that can be run."""
    rank, expert = placement.rank.astype(np.int64), placement.expert.astype(np.int64)
    if (np.diff(rank) < 0).any():
        raise InputError(f"{where}: slots do not ascend by rank: make the plan again")
    if len(rank) and len(np.unique(expert)) < experts:
        raise InputError(f"{where}: an expert has no slot: make the plan again")
    if len(np.unique(rank * experts + expert)) < len(rank):
        raise InputError(f"{where}: a rank has an expert twice: make the plan again")


def _weights(file, path: Path) -> Weights:
    names, values = h5.strings(file, "weight/name", path), h5.take(file, "weight/value", path, np.floating, 1)
    if names != [f.name for f in fields(Weights)] or len(values) != len(names) or not _sound(values):
        raise InputError(f"{path}: weight has other names than {', '.join(f.name for f in fields(Weights))}, or values "
                         "that cannot be: make the plan again")
    return Weights(*values.tolist())


def _prediction(file, path: Path, layers: int, ranks: int) -> Prediction:
    shapes: dict[str, Sequence[int]] = {"rows": (layers, ranks), "bytes": (layers, len(CLASSES)), "crossing": (layers,),
                                        "seconds": (layers, len(TERMS))}
    found = {name: h5.take(file, f"predicted/{name}", path, np.floating, len(shape)) for name, shape in shapes.items()}
    for name, values in found.items():
        if values.shape != shapes[name] or not _sound(values):
            raise InputError(f"{path}: predicted/{name} does not fit its {layers} layers and {ranks} ranks, or has "
                             "values that cannot be: make the plan again")
    return Prediction(**found)


def _sound(values: np.ndarray) -> bool:
    return bool((np.isfinite(values) & (values >= 0)).all())
