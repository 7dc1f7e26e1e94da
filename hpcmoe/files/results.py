"""results.h5: the answers in the order of the prompts, packed from the parts when a run ends.

    prompt [P] int64, id [P], text [P], stop [P]
    tokens/data int32, logprobs/data float32, each with offsets int64 [P + 1]
    load [L, E] int64
    timings/attempt, step, tokens, chosen, wall [steps]; timings/mean, max [steps, stages] over the ranks
    exchange/step, exchange/layer, exchange/class: see `files.traffic`
    routing/: see `files.routing`; bias/, where the job has one: see `files.bias`
    host [R]
    attributes: job (TOML), identity, versions, ranks, experts_per_rank; shards, where it was packed from some
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
    """The steps of a run, over all its ranks and attempts."""

    attempt: np.ndarray
    """`[steps]` int64"""
    step: np.ndarray
    """`[steps]` int64, from 0 in each attempt"""
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
    """of the attempts with as many ranks as the last one; None in files of versions that did not count it"""
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
                                  tabulate(pieces), by_layer(pieces), _routing(pieces, origin.ranks),
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


def _routing(pieces: Sequence[Part], ranks: int) -> Routing | None:
    mine = [(p.rank, p.load, p.computed, p.expert) for p in pieces
            if p.ranks == ranks and 0 <= p.rank < ranks and p.computed is not None and p.expert is not None]
    return files_routing.gather(mine, ranks) if mine else None


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
    """The step times of all parts, put together by (attempt, step)."""
    keyed = [((piece.attempt, s.step), s) for piece in pieces for s in piece.steps]
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
    attempt, step = np.array(sorted(order), np.int64).reshape(n, 2).T
    return StepTable(attempt, step, tokens, chosen, wall, mean, largest, moved)


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
    notes = {"attempt": "which start of the job", "step": "number of the step in its attempt",
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
    wall = h5.take(file, "timings/wall", path, np.floating, 1)
    mean, largest = (h5.take(file, f"timings/{name}", path, np.floating, 2) for name in ("mean", "max"))
    if len({len(column) for column in (*counts, wall, mean, largest)}) > 1:
        raise InputError(f"{path}: the datasets in timings differ in length: make the file again")
    if mean.shape != largest.shape or mean.shape[1] != len(STAGES):
        raise InputError(f"{path}: timings/mean and max have {mean.shape[1]} stages and {largest.shape[1]}, not "
                         f"{len(STAGES)}: make the file again")
    moved = traffic.take(file, "step", len(wall), path) or Traffic.none(len(wall))
    return StepTable(attempt, step, tokens, chosen, wall, mean, largest, moved)


def answers(path: Path) -> list[Answer]:
    """The answers in a results file. Raises `InputError`."""
    vet.check(path, "results")
    with h5.reading(path, "results") as file:
        return parts.take_answers(file, path)
