"""Results of runs that never were, of any size, written by what writes results."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tomli_w

from hpcmoe.files import results
from hpcmoe.files.parts import Provenance
from hpcmoe.files.results import Results, StepTable
from hpcmoe.slots import Routing
from hpcmoe.traffic import Traffic
from hpcmoe.types import STAGES, Answer


def step_table(rng: np.random.Generator, steps: int, ranks: int, speed: float = 1.0) -> StepTable:
    """Steps of a job that was started twice."""
    chosen = rng.integers(ranks, 8 * ranks, steps)
    tokens = chosen + rng.integers(0, 50 * ranks, steps) * (rng.random(steps) < 0.1)
    mean = rng.random((steps, len(STAGES))) * np.array([3, 0.5, 0.5, 4, 5, 0.5, 1]) * 1e-3 / speed
    largest = mean * (1 + rng.random(mean.shape))
    wall = mean.sum(axis=1) * 1.1
    under_way = mean[:, 3] * 2
    moved = Traffic(under_way, mean[:, 3], rng.integers(0, 1 << 20, (steps, 3)))
    attempt = (np.arange(steps) >= steps // 2).astype(np.int64)
    step = np.arange(steps) - attempt * (steps // 2)
    return StepTable(attempt, np.zeros_like(step), step, tokens, chosen, wall, mean, largest, moved)


def put_run(path: Path, *, ranks: int = 4, layers: int = 3, experts: int = 8, steps: int = 40, prompts: int = 12,
            job: dict | None = None, identity: str = "a job\n", versions: str = "hpcmoe 1, MPI 1",
            hosts: Sequence[str] = (), speed: float = 1.0, stop: str = "length", kept: int = 0, name: str = "p{}",
            seed: int = 1, moved: bool = False, first: Sequence[float] = ()) -> Path:
    """Results of a run; its first layer is dense, expert e lies on rank ⌊e·R/E⌋ unless experts `moved`, and two ranks
    are on each host, whose names may be given. `kept` is how many ranks the load is kept of, all where 0; `first` are
    seconds to first tokens, drawn without."""
    rng = np.random.default_rng(seed)
    kept, top_k = kept or ranks, min(2, experts)
    load = rng.integers(0, 200, (layers, kept, experts)) * (np.arange(layers) > 0)[:, None, None]
    computed = np.zeros((layers, ranks), np.int64)
    for layer in range(layers):
        np.add.at(computed[layer], np.arange(experts) * ranks // max(experts, 1), load[layer].sum(axis=0))
    if moved:
        computed = np.roll(computed, 1, axis=1)
    expert = rng.integers(0, max(experts, 1), (16, layers, top_k)).astype(np.int16)
    expert[:, 0] = -1
    table = step_table(rng, steps, ranks, speed)
    waits = [np.nan] * prompts if stop == "scored" else first or (rng.random(prompts) / 5).tolist()
    answers = tuple(Answer(n, np.arange(5, dtype=np.int32), np.zeros(5, np.float32), stop, waits[n])
                    for n in range(prompts))
    sums = table.traffic.total()
    by_layer = Traffic(np.full(layers, sums.seconds / layers), np.full(layers, sums.exposed / layers),
                       np.tile(sums.bytes // layers, (layers, 1)))
    words = tomli_w.dumps(job if job is not None else {"model": "m.h5", "exchange": {"mode": "auto"}})
    names = tuple(hosts[n // 2] if hosts else f"node{n // 2}" for n in range(ranks))
    origin = Provenance(words, identity, versions, ranks, names, 2)
    ids = tuple(name.format(n) for n in range(prompts))
    routing = Routing(load, rng.integers(0, ranks, 16).astype(np.int32), expert, computed)
    results.write(path, origin, Results(answers, ids, ids, load.sum(axis=1), table, by_layer, routing))
    return path
