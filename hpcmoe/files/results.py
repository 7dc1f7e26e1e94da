"""results.h5: the answers in the order of the prompts, packed from the parts when a run ends.

    prompt [P] int64, id [P], text [P], stop [P]
    tokens/data int32, logprobs/data float32, each with offsets int64 [P + 1]
    first_token [P] float64: see `files.first`
    load [L, E] int64
    timings/attempt, group, step, tokens, chosen, wall [steps]; timings/mean, max [steps, stages] over the ranks of the
        group, of the job's independent ones
    exchange/step, exchange/layer, exchange/class: see `files.traffic`
    routing/: see `files.routing`; bias/, where the job has one: see `files.bias`
    host [R]
    attributes: job (TOML), identity, versions, ranks, experts_per_rank, groups; shards, where it was packed from some
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from hpcmoe.errors import InputError, JobError
from hpcmoe.files import bias, h5, parts, traffic, vet
from hpcmoe.files import routing as files_routing
from hpcmoe.files.bias import Biased
from hpcmoe.files.parts import Part, Provenance
from hpcmoe.files.prompts import Prompts
from hpcmoe.slots import Routing
from hpcmoe.traffic import Traffic
from hpcmoe.types import STAGES, Answer

HEAD = 1 << 16
"""Bytes at the beginning of a file that have its mark in them, even where the rest is lost."""


@dataclass(frozen=True)
class StepTable:
    """The steps of a run, over all its attempts, and of each its groups of ranks, which step independently."""

    attempt: np.ndarray
    """`[steps]` int64"""
    group: np.ndarray
    """`[steps]` int64: whose ranks are meant below"""
    step: np.ndarray
    """`[steps]` int64, from 0 in each attempt and group"""
    tokens: np.ndarray
    """`[steps]` int64: tokens computed on all ranks"""
    chosen: np.ndarray
    """`[steps]` int64: tokens chosen on all ranks"""
    wall: np.ndarray
    """`[steps]` float64: seconds on the slowest rank"""
    mean: np.ndarray
    """`[steps, stages]` float64: seconds in each stage, mean over the ranks"""
    max: np.ndarray
    """`[steps, stages]` float64: the same on the slowest rank"""
    traffic: Traffic
    """`[steps]`: seconds are means over the ranks, bytes are those of all ranks"""

    @property
    def seconds(self) -> float:
        """Of all steps: groups worked side by side, attempts one after another."""
        return float(self._slowest(self.wall))

    @property
    def slowest(self) -> np.ndarray:
        """`[stages]` float64: seconds in each stage of all steps, on the slowest rank of each; of the slowest group."""
        return self._slowest(self.max)

    @property
    def average(self) -> np.ndarray:
        """`[stages]` float64: seconds in each stage of all steps, mean over the ranks of all groups."""
        return self.part @ self.mean

    @property
    def moved(self) -> Traffic:
        """Of all steps: seconds are means over the ranks of all groups."""
        return Traffic(self.part @ self.traffic.seconds, self.part @ self.traffic.exposed,
                       self.traffic.bytes.sum(axis=0))

    @property
    def part(self) -> np.ndarray:
        """`[steps]` float64: one over the groups of each step's attempt, as far as they had steps."""
        pairs = np.unique(np.stack([self.attempt, self.group], axis=1), axis=0)
        attempts, count = np.unique(pairs[:, 0], return_counts=True)
        return 1 / count[np.searchsorted(attempts, self.attempt)]

    def _slowest(self, values: np.ndarray) -> np.ndarray:
        """The largest of the groups' sums of values `[steps, ...]`, added up over the attempts."""
        pairs, of = np.unique(np.stack([self.attempt, self.group], axis=1), axis=0, return_inverse=True)
        sums = np.zeros((len(pairs), *values.shape[1:]))
        np.add.at(sums, of.reshape(-1), values)
        attempts = np.unique(pairs[:, 0])
        return sum((sums[pairs[:, 0] == attempt].max(axis=0) for attempt in attempts), np.zeros(values.shape[1:]))


@dataclass(frozen=True)
class Results:
    """P answers, and what they took."""

    answers: tuple[Answer, ...]
    """in the order of the prompts"""
    ids: tuple[str, ...]
    """`[P]`"""
    texts: tuple[str, ...]
    """`[P]`"""
    load: np.ndarray
    """`[L, E]` int64: rows sent to each expert"""
    steps: StepTable
    layers: Traffic
    """`[L]`: of all steps; seconds are means over the ranks, bytes are those of all ranks"""
    routing: Routing | None = None
    """of the attempts with as many ranks and groups as the last one; None in files of versions that did not count it"""
    bias: Biased | None = None
    """what a selection bias did, where the job had one"""


def is_finished(output: Path, identity: str) -> bool:
    """Whether `output` holds the results of this very job. Raises `JobError` where they are another job's."""
    if not output.exists():
        return False
    vet.check(output, "results")
    with h5.reading(output, "results") as file:
        if h5.attribute(file, "identity", output, str) != identity:
            raise JobError(f"output {output} belongs to another job: give --overwrite to replace it, or another name")
    return True


def could_be(path: Path) -> bool:
    """Whether the file at `path` is one of these, whole or damaged: what `--overwrite` may delete."""
    with path.open("rb") as file:
        head = file.read(HEAD)
    return head.startswith(b"\x89HDF\r\n\x1a\n") and f"{h5.OURS}results".encode() in head


def pack(output: Path, prompts: Prompts, origin: Provenance, decode: Callable[[np.ndarray], str],
         rows: np.ndarray | None = None) -> None:
    """Writes `output` from its parts, in the order of the prompts, and removes them.

    `rows` `[n]` int64 ascending are the prompts that the job was to answer, where those are not all.
    Raises `JobError` where the file cannot be written.
    """
    pieces = [parts.read(path) for path in parts.files(output)]
    found: dict[int, Answer] = {}
    for answer in (a for piece in pieces for a in piece.answers):
        found.setdefault(answer.prompt, answer)  # two runs at once may both have answered it, alike
    wanted = list(range(len(prompts))) if rows is None else rows.tolist()
    assert sorted(found) == wanted, "each prompt has an answer"
    answers = [found[prompt] for prompt in wanted]
    write(output, origin, Results(tuple(answers), tuple(prompts.ids[prompt] for prompt in wanted),
                                  tuple(decode(a.tokens) for a in answers), np.sum([p.load for p in pieces], axis=0),
                                  tabulate(pieces), by_layer(pieces), _routing(pieces, origin),
                                  bias.add([p.bias for p in pieces])))
    parts.remove(output)


def write(output: Path, origin: Provenance, found: Results, **attributes: int) -> None:
    """A results file, with more attributes where there are any. Raises `JobError` where it cannot be written."""
    with h5.writing(output, "results") as file:
        origin.stamp(file)
        file.attrs.update(attributes)
        parts.put_answers(file, found.answers)
        h5.put_strings(file, "id", found.ids, "the user's own name of each prompt")
        h5.put_strings(file, "text", found.texts, "text of each answer")
        h5.put(file, "load", found.load, "rows sent to each expert, by layer and expert [rows]")
        _put_timings(file, found.steps)
        traffic.put(file, found.steps.traffic, found.layers, all_ranks=True)
        if found.routing:
            files_routing.put(file, found.routing)
        if found.bias:
            bias.put(file, found.bias)


def read(file: h5py.File, path: Path) -> Results:
    """What is in a results file. Raises `InputError`."""
    answers = parts.take_answers(file, path)
    ids, texts = (tuple(h5.strings(file, name, path, len(answers))) for name in ("id", "text"))
    load = h5.take(file, "load", path, np.integer, 2)
    layers = traffic.take(file, "layer", len(load), path) or Traffic.none(len(load))
    return Results(tuple(answers), ids, texts, load, steps(file, path), layers, files_routing.take(file, path),
                   bias.take(file, len(load), path))


def _routing(pieces: Sequence[Part], origin: Provenance) -> Routing | None:
    mine = [(p.rank, p.load, p.computed, p.expert) for p in pieces
            if (p.ranks, p.groups) == (origin.ranks, origin.groups) and 0 <= p.rank < p.ranks
            and p.computed is not None and p.expert is not None]
    return files_routing.gather(mine, origin.ranks) if mine else None


def routing(path: Path) -> Routing:
    """Where the tokens of a run went. Raises `InputError` where the file does not tell."""
    vet.check(path, "results")
    with h5.reading(path, "results") as file:
        found = files_routing.take(file, path)
    if not found:
        raise InputError(f"{path} does not tell where its tokens went: an older hpcmoe made it, or pack did, of shards "
                         "on different numbers of ranks; give the results of another run")
    return found


def tabulate(pieces: Sequence[Part]) -> StepTable:
    """The step times of all parts, put together by (attempt, group, step)."""
    keyed = [((piece.attempt, piece.group, s.step), s) for piece in pieces for s in piece.steps]
    order = {key: row for row, key in enumerate(sorted({key for key, _ in keyed}))}
    rows = np.array([order[key] for key, _ in keyed], np.int64)
    n = len(order)
    ranks = np.bincount(rows, minlength=n)
    tokens, chosen = np.zeros((2, n), np.int64)
    wall, mean, largest = np.zeros(n), np.zeros((n, len(STAGES))), np.zeros((n, len(STAGES)))
    moved = Traffic.none(n)
    if n:
        np.add.at(tokens, rows, [s.tokens for _, s in keyed])
        np.add.at(chosen, rows, [s.chosen for _, s in keyed])
        np.maximum.at(wall, rows, [s.wall for _, s in keyed])
        stages = np.array([s.stages for _, s in keyed])
        np.add.at(mean, rows, stages)
        np.maximum.at(largest, rows, stages)
        mean /= ranks[:, None]
        every = Traffic.stack([s.traffic for _, s in keyed])
        for sums, values in ((moved.seconds, every.seconds), (moved.exposed, every.exposed),
                             (moved.bytes, every.bytes)):
            np.add.at(sums, rows, values)
        moved = Traffic(moved.seconds / ranks, moved.exposed / ranks, moved.bytes)
    attempt, group, step = np.array(sorted(order), np.int64).reshape(n, 3).T
    return StepTable(attempt, group, step, tokens, chosen, wall, mean, largest, moved)


def by_layer(pieces: Sequence[Part]) -> Traffic:
    """`[L]`: of all steps; seconds are means over the ranks of each attempt, bytes are those of all ranks."""
    total = Traffic.none(len(pieces[0].load))
    for attempt in {piece.attempt for piece in pieces}:
        mine = [piece for piece in pieces if piece.attempt == attempt]
        ranks = np.bincount(np.array([s.step for piece in mine for s in piece.steps], np.int64)).max(initial=1)
        for moved in (piece.traffic for piece in mine if piece.traffic):
            total += Traffic(moved.seconds / ranks, moved.exposed / ranks, moved.bytes)
    return total


def _put_timings(file: h5py.File, table: StepTable) -> None:
    notes = {"attempt": "which start of the job", "group": "which of its independent groups of ranks",
             "step": "number of the step in its attempt and group",
             "tokens": "tokens computed on all ranks [tokens]", "chosen": "tokens chosen on all ranks [tokens]",
             "wall": "seconds of the step on the slowest rank [s]",
             "mean": "seconds in each stage, mean over the ranks [s]",
             "max": "seconds in each stage on the slowest rank [s]"}
    for name, note in notes.items():
        h5.put(file, f"timings/{name}", getattr(table, name), note)
    h5.put_strings(file, "timings/stage", STAGES, "names of the stages")


def steps(file: h5py.File, path: Path) -> StepTable:
    """The step times in a results file. Raises `InputError`."""
    counts = attempt, step, tokens, chosen = [h5.take(file, f"timings/{name}", path, np.integer, 1)
                                              for name in ("attempt", "step", "tokens", "chosen")]
    group = h5.take(file, "timings/group", path, np.integer, 1) if "timings/group" in file else np.zeros_like(step)
    wall = h5.take(file, "timings/wall", path, np.floating, 1)
    mean, largest = (h5.take(file, f"timings/{name}", path, np.floating, 2) for name in ("mean", "max"))
    if len({len(column) for column in (*counts, group, wall, mean, largest)}) > 1:
        raise InputError(f"{path}: the datasets in timings differ in length: make the file again")
    if mean.shape != largest.shape or mean.shape[1] != len(STAGES):
        raise InputError(f"{path}: timings/mean and max have {mean.shape[1]} stages and {largest.shape[1]}, not "
                         f"{len(STAGES)}: make the file again")
    moved = traffic.take(file, "step", len(wall), path) or Traffic.none(len(wall))
    return StepTable(attempt, group, step, tokens, chosen, wall, mean, largest, moved)


def answers(path: Path) -> list[Answer]:
    """The answers in a results file. Raises `InputError`."""
    vet.check(path, "results")
    with h5.reading(path, "results") as file:
        return parts.take_answers(file, path)
