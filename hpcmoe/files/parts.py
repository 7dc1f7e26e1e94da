"""Parts: what a rank has finished since its last commit, one small HDF5 file that is never touched again.

`out.h5.parts/ATTEMPT-RANK-SEQ.h5` holds whole prompts in the layout of results.h5, and this rank's share
of the loads, step times and traffic. It appears by a rename, so a job that is killed leaves only whole parts,
and a resumed job leaves out the prompts that are in them. A part that the file system cut off all the same costs its
own prompts: it is set aside, and they are answered again. `files.begun` lies beside the parts.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import h5py
import numpy as np

from hpcmoe.errors import InputError, JobError
from hpcmoe.files import bias, first, h5, routing, traffic, vet
from hpcmoe.files.bias import Biased
from hpcmoe.files.h5 import Damaged
from hpcmoe.traffic import Traffic
from hpcmoe.types import STAGES, Answer, StepTime


@dataclass(frozen=True)
class Provenance:
    """What every output file says of the run that made it."""

    job: str
    """the resolved job, TOML"""
    identity: str
    """what the results depend on; see `config.Job.identity`"""
    versions: str
    ranks: int
    hosts: tuple[str, ...]
    """`[R]`: the host of each rank"""
    experts_per_rank: int
    groups: int = 1
    """independent groups of neighbouring ranks that answered the prompts together"""

    def stamp(self, file: h5py.File) -> None:
        """Writes itself as attributes of `file`."""
        file.attrs.update(job=self.job, identity=self.identity, versions=self.versions, ranks=self.ranks,
                          experts_per_rank=self.experts_per_rank, groups=self.groups)
        h5.put_strings(file, "host", self.hosts, "host of each rank")


@dataclass(frozen=True)
class Part:
    """One commit of one rank."""

    answers: tuple[Answer, ...]
    load: np.ndarray
    """`[L, E]` int64: rows that this rank sent to each expert since its last commit"""
    steps: tuple[StepTime, ...]
    attempt: int = 0
    traffic: Traffic | None = None
    """`[L]`: of this rank's exchanges since its last commit; None in parts of versions that did not count it"""
    computed: np.ndarray | None = None
    """`[L]` int64: rows that this rank's experts computed, since its last commit as in the next one"""
    expert: np.ndarray | None = None
    """`[n, L, K]` int16: the experts of sampled tokens"""
    rank: int = 0
    """which wrote it, -1 where that is not known,"""
    ranks: int = 1
    """of so many,"""
    groups: int = 1
    """in as many groups of neighbours"""
    bias: Biased | None = None
    """what a selection bias did, where the job has one"""

    @property
    def group(self) -> int:
        """Which of the groups the rank was in."""
        return max(self.rank, 0) * self.groups // self.ranks


def folder(output: Path) -> Path:
    """Where the parts of `output` lie until they are packed."""
    return output.with_name(output.name + ".parts")


def files(output: Path) -> list[Path]:
    """The parts of `output`, by attempt, rank and sequence number."""
    return sorted(folder(output).glob("[0-9]*-*-*.h5"))


def stem(attempt: int, rank: int, sequence: int) -> str:
    """Of a file's name."""
    return f"{_prefix(attempt, rank)}{sequence:06d}"


def _prefix(attempt: int, rank: int) -> str:
    return f"{attempt:04d}-{rank:05d}-"


def is_by(path: Path, attempt: int, ranks: Sequence[int]) -> bool:
    """Whether a part, or a file of what has begun, was written by one of `ranks` in an attempt."""
    return path.name.removeprefix("begun-").startswith(tuple(_prefix(attempt, rank) for rank in ranks))


def write(output: Path, attempt: int, rank: int, sequence: int, part: Part, origin: Provenance) -> Path:
    """Commits a part. Raises `JobError` where it cannot be written."""
    path = folder(output) / f"{stem(attempt, rank, sequence)}.h5"
    with h5.writing(path, "part") as file:
        origin.stamp(file)
        file.attrs.update(attempt=attempt, rank=rank)
        put_answers(file, part.answers)
        h5.put(file, "load", part.load, "rows sent to each expert, by layer and expert [rows]")
        _put_steps(file, part.steps)
        if part.computed is not None and part.expert is not None:
            routing.put_own(file, part.computed, part.expert)
        if part.bias:
            bias.put(file, part.bias)
        if part.traffic:
            traffic.put(file, Traffic.stack([s.traffic for s in part.steps]), part.traffic, all_ranks=False)
    return path


def put_answers(file: h5py.File, answers: Sequence[Answer]) -> None:
    """The datasets that parts and results share."""
    h5.put(file, "prompt", np.array([a.prompt for a in answers], np.int64), "row of each answer in the prompts file")
    h5.put_ragged(file, "tokens", [a.tokens for a in answers], "int32",
                  "new tokens, the stop token included; the prompt's own if scored")
    h5.put_ragged(file, "logprobs", [a.logprobs for a in answers], "float32", "log-probability of each token [nat]")
    h5.put_strings(file, "stop", [a.stop for a in answers], "why each answer ended: eos, length or context; scored")
    first.put(file, [a.first for a in answers])


def _put_steps(file: h5py.File, steps: Sequence[StepTime]) -> None:
    h5.put(file, "timings/step", np.array([s.step for s in steps], np.int64), "number of each step")
    h5.put(file, "timings/tokens", np.array([s.tokens for s in steps], np.int64), "tokens that this rank computed")
    h5.put(file, "timings/chosen", np.array([s.chosen for s in steps], np.int64), "tokens that this rank chose")
    h5.put(file, "timings/wall", np.array([s.wall for s in steps], np.float64), "seconds of each step [s]")
    stages = np.array([s.stages for s in steps], np.float64).reshape(len(steps), len(STAGES))
    h5.put(file, "timings/seconds", stages, "seconds of each step in each stage [s]")


def read(path: Path) -> Part:
    """The part in `path`. Raises `InputError`, `Damaged` where it is one of ours but not whole."""
    with h5.reading(path, "part") as file:
        try:
            load = take_load(file, path)
            rank = h5.attribute(file, "rank", path, int) if "rank" in file.attrs else -1
            return Part(tuple(take_answers(file, path)), load, _take_steps(file, path),
                        h5.attribute(file, "attempt", path, int), traffic.take(file, "layer", len(load), path),
                        *routing.take_own(file, path, *load.shape), rank,
                        *groups(file, path), bias.take(file, len(load), path))
        except InputError as error:
            raise Damaged(str(error)) from None


def groups(file: h5py.File, path: Path) -> tuple[int, int]:
    """How many ranks wrote a part or results file, and in how many groups; versions that had none do not tell. Raises
    `InputError`."""
    ranks = h5.attribute(file, "ranks", path, int)
    found = h5.attribute(file, "groups", path, int) if "groups" in file.attrs else 1
    if ranks < 1 or found < 1 or ranks % found:
        raise InputError(f"{path}: {ranks} ranks are not in {found} groups of one size: make the file again")
    return ranks, found


def take_load(file: h5py.File, path: Path) -> np.ndarray:
    """Rows sent to each expert, `[L, E]`, in a part or results file. Raises `InputError`."""
    load = h5.take(file, "load", path, np.integer, 2)
    if (load < 0).any() or load.sum(dtype=np.float64) >= 2**62:
        raise InputError(f"{path}: load has values that cannot be counted: make the file again")
    return load


def _take_steps(file: h5py.File, path: Path) -> tuple[StepTime, ...]:
    number, tokens, chosen = (h5.take(file, f"timings/{name}", path, np.integer, 1)
                              for name in ("step", "tokens", "chosen"))
    wall = h5.take(file, "timings/wall", path, np.floating, 1)
    stages = h5.take(file, "timings/seconds", path, np.floating, 2)
    if len({len(column) for column in (number, tokens, chosen, wall)}) > 1 or stages.shape != (len(wall), len(STAGES)):
        raise InputError(f"{path}: the datasets in timings differ in length: make the file again")
    moved = traffic.take(file, "step", len(wall), path) or Traffic.none(len(wall))
    return tuple(StepTime(int(n), int(t), int(c), float(w), s, m)
                 for n, t, c, w, s, m in zip(number, tokens, chosen, wall, stages, moved.entries()))


def take_answers(file: h5py.File, path: Path) -> list[Answer]:
    """The answers in a part or results file, in its order. Raises `InputError`."""
    prompt = h5.take(file, "prompt", path, np.integer, 1)
    tokens, offsets = h5.ragged(file, "tokens", path)
    logprobs, same = h5.ragged(file, "logprobs", path, np.floating)
    stop = h5.strings(file, "stop", path, len(prompt))
    if len(offsets) != len(prompt) + 1 or not np.array_equal(offsets, same):
        raise InputError(f"{path}: prompt, tokens and logprobs differ in length: make the file again")
    parts = [slice(begin, end) for begin, end in pairwise(offsets)]
    waited = first.take(file, path, len(prompt)).tolist()
    return [Answer(int(number), tokens[part], logprobs[part], why, seconds)
            for number, part, why, seconds in zip(prompt, parts, stop, waited)]


@dataclass(frozen=True)
class Finished:
    """What earlier attempts finished."""

    done: np.ndarray
    """`[n]` int64 ascending: rows of the prompts"""
    damaged: tuple[tuple[Path, str], ...]
    """parts that are not whole, and what is wrong with each"""
    versions: frozenset[str]
    """of what computed the others; see `Provenance`"""


def finished(output: Path, identity: str) -> Finished:
    """What is in the parts of `output`.

    Reads all parts through: what is in them must be there when the results are packed. Raises `JobError` where the
    parts belong to another job, `InputError` where one cannot be read, or by a newer version only.
    """
    done, damaged, versions = [np.empty(0, np.int64)], [], set()
    for path in files(output):
        try:
            look_through(path, "part")
            with h5.reading(path, "part") as file:
                check_identity(file, path, output, identity)
                versions.add(str(file.attrs.get("versions", "")))
            done.append(np.array([answer.prompt for answer in read(path).answers], np.int64))
        except Damaged as damage:
            damaged.append((path, str(damage).partition(": copy or make")[0].partition(": make the file")[0]))
    return Finished(np.sort(np.concatenate(done)), tuple(damaged), frozenset(versions))


def look_through(path: Path, layout: str) -> None:
    """Raises `Damaged` where `vet.check` finds something wrong with a file, but that a newer version wrote it."""
    try:
        vet.check(path, layout)
    except InputError as error:
        if str(error).endswith(h5.NEWER):
            raise
        raise Damaged(str(error)) from None


def check_identity(file: h5py.File, path: Path, output: Path, identity: str) -> None:
    """Raises `JobError` where a file among the parts of `output` is another job's, `Damaged` where it does not tell."""
    if "identity" not in file.attrs:
        raise Damaged(f"{path}: attribute identity is missing")
    if h5.attribute(file, "identity", path, str) != identity:
        raise JobError(f"{folder(output)} holds parts of another job: give --overwrite to throw them away, "
                       "or another output")


def next_attempt(output: Path) -> int:
    """The number of the next attempt: above those of all files that earlier ones left, damaged ones too."""
    names = [path.name.removeprefix("begun-") for path in folder(output).glob("*[0-9]-*-*.h5*") if path.name[0] != "."]
    return max((int(name.split("-")[0]) + 1 for name in names if name.split("-")[0].isdigit()), default=0)


def set_aside(path: Path) -> Path:
    """Takes a damaged part from among the parts -> its new name. Raises `JobError`."""
    aside = path.with_name(path.name + ".damaged")
    try:
        path.replace(aside)
    except OSError as error:
        raise JobError(f"{path} is damaged and cannot be set aside: {error.strerror or error}") from None
    return aside


def sweep(output: Path) -> None:
    """Removes what writers of parts left unfinished. For the only job that is at this output."""
    for path in folder(output).glob(".*[0-9]-*-*.h5.*.tmp"):
        with suppress(OSError):
            path.unlink()


def remove(output: Path) -> None:
    """Deletes the parts of `output` and all that belongs to them, and their folder where nothing else is in it.

    What cannot be deleted stays: a run has its results by then, or will find those parts.
    """
    sweep(output)
    for pattern in ("[0-9]*-*-*.h5", "begun-[0-9]*-*-*.h5", "[0-9]*-*-*.h5.damaged"):
        for path in folder(output).glob(pattern):
            with suppress(OSError):
                path.unlink()
    with suppress(OSError):
        folder(output).rmdir()
