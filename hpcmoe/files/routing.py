"""The group `routing/` of results: where the tokens of a run went, for `hpcmoe plan`.

    routing/load [L, R, E]: rows that the tokens of each rank sent to each expert; R is 1, all ranks together, where the
        table would be large
    routing/expert [n, L, K]: the experts of sampled tokens; -1 in dense layers
    routing/rank [n]: the ranks of these tokens

Parts have `routing/expert` of their own rank.
"""

from collections.abc import Sequence
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


def put_sample(file: h5py.File, expert: np.ndarray) -> None:
    """What a part has: `[n, L, K]` int16."""
    h5.put(file, "routing/expert", expert, EXPERT, **_packed(expert))


def _packed(expert: np.ndarray) -> dict[str, str]:
    return {"compression": "gzip"} if expert.size else {}


def take_sample(file: h5py.File, path: Path, layers: int, experts: int) -> np.ndarray | None:
    """`[n, L, K]` int16; None in parts of versions that kept none. Raises `InputError`."""
    if "routing/expert" not in file:
        return None
    expert = h5.take(file, "routing/expert", path, np.integer, 3)
    if expert.shape[1] != layers or (expert < -1).any() or (expert >= experts).any():
        raise InputError(f"{path}: routing/expert does not fit its {layers} layers and {experts} experts: make the "
                         "file again")
    return expert.astype(np.int16)


def put(file: h5py.File, routing: Routing) -> None:
    """Writes the group."""
    h5.put(file, "routing/load", routing.load, "rows by layer, rank of the token, and expert [rows]")
    h5.put(file, "routing/expert", routing.expert, EXPERT, **_packed(routing.expert))
    h5.put(file, "routing/rank", routing.rank, "rank of each sampled token")


def take(file: h5py.File, path: Path) -> Routing | None:
    """What is there; None in files of versions that did not count it. Raises `InputError`."""
    if "routing/load" not in file:
        return None
    load = h5.take(file, "routing/load", path, np.integer, 3)
    rank = h5.take(file, "routing/rank", path, np.integer, 1)
    expert = take_sample(file, path, len(load), load.shape[2])
    ranks = h5.attribute(file, "ranks", path, int)
    if (load < 0).any() or load.sum(dtype=np.float64) >= 2**62 or load.shape[1] not in (1, ranks):
        raise InputError(f"{path}: routing/load has values that cannot be counted, or is of other ranks: make the file "
                         "again")
    if expert is None or len(rank) != len(expert) or (rank < 0).any() or (rank >= ranks).any():
        raise InputError(f"{path}: routing/rank does not fit routing/expert and {ranks} ranks: make the file again")
    return Routing(load, rank.astype(np.int32), expert)


def gather(pieces: Sequence[tuple[int, np.ndarray, np.ndarray]], ranks: int) -> Routing:
    """Of the commits (rank, load `[L, E]`, expert `[n, L, K]`) of a run on `ranks` ranks."""
    L, E = pieces[0][1].shape
    kept = ranks if L * ranks * E <= LARGEST else 1
    load = np.zeros((L, kept, E), np.int64)
    for rank, rows, _ in pieces:
        load[:, min(rank, kept - 1)] += rows
    K = max(expert.shape[2] for *_, expert in pieces)
    some = [(rank, expert) for rank, _, expert in pieces if len(expert)]
    expert = np.concatenate([np.empty((0, L, K), np.int16), *(expert for _, expert in some)])
    of = np.repeat(np.array([rank for rank, _ in some], np.int32), [len(expert) for _, expert in some])
    return thin(Routing(load, of, expert))


def thin(routing: Routing) -> Routing:
    """With `SAMPLES` tokens at most."""
    n = len(routing.rank)
    some = np.arange(min(n, SAMPLES)) * n // max(min(n, SAMPLES), 1)
    return Routing(routing.load, routing.rank[some], routing.expert[some])


def join(found: Sequence[Routing | None]) -> Routing | None:
    """Of the shards of a job; None where one has none, or they had other numbers of ranks or experts per token."""
    some = [routing for routing in found if routing]
    if len(some) < len(found) or len({(r.load.shape, r.expert.shape[1:]) for r in some}) > 1:
        return None
    return thin(Routing(np.sum([r.load for r in some], axis=0), np.concatenate([r.rank for r in some]),
                        np.concatenate([r.expert for r in some])))
