"""What reports want to know of a run, read from its results without the answers' texts."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hpcmoe import tables
from hpcmoe.engine.inputs import open_model
from hpcmoe.errors import HpcmoeError, InputError
from hpcmoe.files import first as files_first
from hpcmoe.files import h5, parts, results, traffic, vet
from hpcmoe.files import routing as files_routing
from hpcmoe.files.results import StepTable
from hpcmoe.slots import Routing
from hpcmoe.spec import ModelSpec
from hpcmoe.traffic import Traffic
from hpcmoe.types import STAGES


@dataclass(frozen=True)
class Measured:
    """A finished run."""

    path: Path
    created: str
    job: Mapping[str, object]
    """the job's TOML"""
    identity: str
    versions: str
    hosts: tuple[str, ...]
    """`[R]`"""
    ranks: int
    groups: int
    """independent ones of neighbouring ranks"""
    shards: int
    """of a job array, whose results it was packed from; 1 where it was not"""
    slots: int
    """experts per rank and layer at most"""
    lengths: np.ndarray
    """`[P]` int64: tokens of each answer"""
    first: np.ndarray
    """`[P]` float64 seconds to the first new token, see `files.first`"""
    stops: Mapping[str, int]
    """answers by why they ended"""
    steps: StepTable
    layers: Traffic
    load: np.ndarray
    """`[L, E]` int64 rows"""
    routing: Routing | None

    @property
    def scored(self) -> bool:
        """Whether it scored its prompts, and did not answer them."""
        return "scored" in self.stops

    @property
    def seconds(self) -> float:
        """Of all steps."""
        return self.steps.seconds

    @property
    def new(self) -> int:
        """Tokens chosen or scored."""
        return int(self.steps.chosen.sum())

    @property
    def rate(self) -> float:
        """New tokens/s over all steps; 0 where there were none."""
        return self.new / self.seconds if self.seconds else 0.0

    @property
    def busy(self) -> np.ndarray:
        """`[n]` int64: the layers with experts that rows went to."""
        return np.flatnonzero(self.load.any(axis=1)) if self.load.size else np.empty(0, np.int64)

    @property
    def uneven(self) -> np.ndarray:
        """`[steps]` float64: seconds in the experts, slowest rank over the mean; NaN where nothing was computed."""
        column = STAGES.index("expert")
        mean = self.steps.mean[:, column]
        return np.divide(self.steps.max[:, column], mean, out=np.full(len(mean), np.nan), where=mean > 0)


def read(path: Path) -> Measured:
    """What `path` holds. Raises `InputError`."""
    vet.check(path, "results")
    with h5.reading(path, "results") as file:
        job, identity, versions, created = (h5.attribute(file, name, path, str)
                                            for name in ("job", "identity", "versions", "created"))
        (ranks, groups), slots = parts.groups(file, path), h5.attribute(file, "experts_per_rank", path, int)
        shards = h5.attribute(file, "shards", path, int) if "shards" in file.attrs else 1
        steps, load = results.steps(file, path), parts.take_load(file, path)
        _, offsets = h5.ragged(file, "tokens", path)
        stops = Counter(h5.strings(file, "stop", path, len(offsets) - 1))
        first = files_first.take(file, path, len(offsets) - 1)
        layers = traffic.take(file, "layer", len(load), path) or Traffic.none(len(load))
        hosts, routing = tuple(h5.strings(file, "host", path)), files_routing.take(file, path)
    if not hosts:
        raise InputError(f"{path} names {ranks} ranks on no hosts: make the file again")
    _check(path, steps, layers)
    return Measured(path, created, _table(job, path), identity, versions, hosts, ranks, groups, shards, slots,
                    np.diff(offsets), first, stops, steps, layers, load, routing)


def _table(job: str, path: Path) -> dict:
    try:
        return tables.parse(job)
    except tables.Bad:
        raise InputError(f"{path}: attribute job is no job: make the file again") from None


def _check(path: Path, steps: StepTable, layers: Traffic) -> None:
    """Raises `InputError` where something cannot be so."""
    spans = [steps.wall, steps.mean, steps.max, *(t for moved in (steps.traffic, layers)
                                                  for t in (moved.seconds, moved.exposed))]
    counts = [steps.attempt, steps.step, steps.tokens, steps.chosen, steps.traffic.bytes, layers.bytes]
    if not all((np.isfinite(t) & (t >= 0) & (t <= files_first.LONGEST)).all() for t in spans):
        raise InputError(f"{path}: timings or exchange have seconds that cannot be: make the file again")
    if not all((n >= 0).all() and n.sum(dtype=np.float64) < 2**62 for n in counts):
        raise InputError(f"{path}: timings or exchange have values that cannot be counted: make the file again")


def flat(job: Mapping[str, object], where: str = "") -> dict[str, object]:
    """A job's keys by their dotted paths."""
    found: dict[str, object] = {}
    for name, value in job.items():
        found |= flat(value, f"{where}{name}.") if isinstance(value, Mapping) else {f"{where}{name}": value}
    return found


def at(run: Measured, key: str, default: object = None) -> object:
    """The job's key by its dotted path, `default` where it is not there."""
    return flat(run.job).get(key, default)


def model(run: Measured) -> ModelSpec:
    """The model that the job names. Raises `InputError` where it is not there any more, or another one."""
    path = at(run, "model")
    if not isinstance(path, str):
        raise InputError("its job names no model")
    try:
        found = open_model(Path(path)).spec
    except HpcmoeError as error:
        raise InputError(str(error)) from None
    if (found.layers, found.experts) != run.load.shape:
        raise InputError(f"{path} is another model by now")
    return found
