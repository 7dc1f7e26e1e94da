"""The group `routing/` of results: where the tokens of a run went, for `hpcmoe plan`.

    routing/load [L, R, E]: rows that the tokens of each rank sent to each expert; R is 1, all ranks together, where the
        table would be large
    routing/computed [L, R]: rows that the experts of each rank computed; where they are cut, each shard counts its own
    routing/expert [n, L, K]: the experts of sampled tokens; -1 in dense layers
    routing/rank [n]: the ranks of these tokens

Parts have `routing/expert` and `routing/computed` `[L]` of their own rank.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np

from hpcmoe.errors import InputError
from hpcmoe.files import h5
from hpcmoe.slots import Routing

LARGEST = 1 << 22
"""Values of a load."""
SAMPLES = 1 << 14
"""Tokens of results, at most."""
EXPERT = "experts of sampled tokens, by token, layer and k; -1 in dense layers"


def put_own(file: h5py.File, computed: np.ndarray, expert: np.ndarray) -> None:
    """What a part has: computed `[L]` int64, expert `[n, L, K]` int16."""
    h5.put(file, "routing/computed", computed, "rows that this rank's experts computed, by layer [rows]")
    h5.put(file, "routing/expert", expert, EXPERT, **_packed(expert))


def _packed(expert: np.ndarray) -> dict[str, str]:
    return {"compression": "gzip"} if expert.size else {}


def take_own(file: h5py.File, path: Path, layers: int, experts: int) -> tuple[np.ndarray | None, np.ndarray | None]:
    """What `put_own` put; None in parts of versions that kept none. Raises `InputError`."""
    if "routing/expert" not in file:
        return None, None
    computed = h5.take(file, "routing/computed", path, np.integer, 1)
    _check_rows(computed, "computed", (layers,), path)
    return computed, _take_sample(file, path, layers, experts)


def _check_rows(rows: np.ndarray, name: str, shape: tuple[int, ...], path: Path) -> None:
    if rows.shape != shape or (rows < 0).any() or rows.sum(dtype=np.float64) >= 2**62:
        raise InputError(f"{path}: routing/{name} has values that cannot be counted, or is of other layers or ranks: "
                         "make the file again")


def _take_sample(file: h5py.File, path: Path, layers: int, experts: int) -> np.ndarray:
    expert = h5.take(file, "routing/expert", path, np.integer, 3)
    if expert.shape[1] != layers or (expert < -1).any() or (expert >= experts).any():
        raise InputError(f"{path}: routing/expert does not fit its {layers} layers and {experts} experts: make the "
                         "file again")
    return expert.astype(np.int16)


def put(file: h5py.File, routing: Routing) -> None:
    """Writes the group."""
    h5.put(file, "routing/load", routing.load, "rows by layer, rank of the token, and expert [rows]")
    h5.put(file, "routing/computed", routing.computed, "rows that experts computed, by layer and rank [rows]")
    h5.put(file, "routing/expert", routing.expert, EXPERT, **_packed(routing.expert))
    h5.put(file, "routing/rank", routing.rank, "rank of each sampled token")


def take(file: h5py.File, path: Path) -> Routing | None:
    """What is there; None in files of versions that did not count it. Raises `InputError`."""
    if "routing/load" not in file:
        return None
    load = h5.take(file, "routing/load", path, np.integer, 3)
    rank = h5.take(file, "routing/rank", path, np.integer, 1)
    computed = h5.take(file, "routing/computed", path, np.integer, 2)
    expert, ranks = _take_sample(file, path, len(load), load.shape[2]), computed.shape[1]
    if not ranks or h5.attribute(file, "ranks", path, int) % ranks:  # packed shards have those of one, all together
        raise InputError(f"{path}: routing/computed is of {ranks} ranks, and the file of others: make the file again")
    _check_rows(load, "load", (len(load), 1 if load.shape[1] == 1 else ranks, load.shape[2]), path)
    _check_rows(computed, "computed", (len(load), ranks), path)
    if len(rank) != len(expert) or (rank < 0).any() or (rank >= ranks).any():
        raise InputError(f"{path}: routing/rank does not fit routing/expert and {ranks} ranks: make the file again")
    return Routing(load, rank.astype(np.int32), expert, computed)


def gather(pieces: Sequence[tuple[int, np.ndarray, np.ndarray, np.ndarray]], ranks: int) -> Routing:
    """Of the commits (rank, load `[L, E]`, computed `[L]`, expert `[n, L, K]`) of a run on `ranks` ranks."""
    L, E = pieces[0][1].shape
    kept = ranks if L * ranks * E <= LARGEST else 1
    load = np.zeros((L, kept, E), np.int64)
    computed = np.zeros((L, ranks), np.int64)
    for rank, rows, mine, _ in pieces:
        load[:, min(rank, kept - 1)] += rows
        computed[:, rank] += mine
    K = max(expert.shape[2] for *_, expert in pieces)
    some = [(rank, expert) for rank, *_, expert in pieces if len(expert)]
    expert = np.concatenate([np.empty((0, L, K), np.int16), *(expert for _, expert in some)])
    of = np.repeat(np.array([rank for rank, _ in some], np.int32), [len(expert) for _, expert in some])
    return thin(Routing(load, of, expert, computed))


def thin(routing: Routing) -> Routing:
    """With `SAMPLES` tokens at most."""
    n = len(routing.rank)
    some = np.arange(min(n, SAMPLES)) * n // max(min(n, SAMPLES), 1)
    return replace(routing, rank=routing.rank[some], expert=routing.expert[some])


def folded(routing: Routing, groups: int) -> Routing:
    """Of the ranks of one group, where those of all `groups` had it together: each stands for those with its place in
    their groups."""
    if groups == 1:
        return routing
    ranks = routing.computed.shape[1] // groups

    def fold(rows: np.ndarray) -> np.ndarray:
        return rows.reshape(len(rows), groups, ranks, *rows.shape[2:]).sum(axis=1)
    load = routing.load if routing.load.shape[1] == 1 else fold(routing.load)
    return Routing(load, routing.rank % np.int32(ranks), routing.expert, fold(routing.computed))


def join(found: Sequence[Routing | None]) -> Routing | None:
    """Of the shards of a job; None where one has none, or they had other numbers of ranks or experts per token."""
    some = [routing for routing in found if routing]
    if len(some) < len(found) or len({(r.load.shape, r.expert.shape[1:]) for r in some}) > 1:
        return None
    load, computed = (np.sum([getattr(r, name) for r in some], axis=0) for name in ("load", "computed"))
    rank, expert = (np.concatenate([getattr(r, name) for r in some]) for name in ("rank", "expert"))
    return thin(Routing(load, rank, expert, computed))
