"""results.h5: the answers in the order of the prompts, packed from the parts when a run ends.

    prompt [P] int64, id [P], text [P], stop [P]
    tokens/data int32, logprobs/data float32, each with offsets int64 [P + 1]
    load [L, E] int64
    timings/attempt, step, tokens, chosen, wall [steps]; timings/mean, max [steps, stages] over the ranks
    exchange/step/seconds, exposed, hidden [steps], bytes [steps, classes]; exchange/layer/ the same [L], [L, classes]
    host [R]
    attributes: job (TOML), identity, versions, ranks, experts_per_rank
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from hpcmoe.errors import InputError, JobError
from hpcmoe.files import h5, parts
from hpcmoe.files.parts import Part, Provenance
from hpcmoe.files.prompts import Prompts
from hpcmoe.types import CLASSES, STAGES, Answer, Traffic, no_traffic

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
    """of each step in place of each layer: seconds as mean over the ranks, bytes of all ranks"""


def is_finished(output: Path, identity: str) -> bool:
    """Whether `output` holds the results of this very job. Raises `JobError` where they are another job's."""
    if not output.exists():
        return False
    with h5.reading(output, "results") as file:
        if h5.attribute(file, "identity", output, str) != identity:
            raise JobError(f"output {output} belongs to another job: give --overwrite to replace it, or another name")
    return True


def could_be(path: Path) -> bool:
    """Whether the file at `path` is one of these, whole or damaged: what `--overwrite` may delete."""
    with path.open("rb") as file:
        head = file.read(HEAD)
    return head.startswith(b"\x89HDF\r\n\x1a\n") and f"{h5.OURS}results".encode() in head


def pack(output: Path, prompts: Prompts, origin: Provenance, decode: Callable[[np.ndarray], str]) -> None:
    """Writes `output` from its parts, in the order of the prompts, and removes them.

    Raises `JobError` where the file cannot be written.
    """
    pieces = [parts.read(path) for path in parts.files(output)]
    found: dict[int, Answer] = {}
    for answer in (a for piece in pieces for a in piece.answers):
        found.setdefault(answer.prompt, answer)  # two runs at once may both have answered it, alike
    assert sorted(found) == list(range(len(prompts))), "each prompt has an answer"
    answers = [found[prompt] for prompt in range(len(prompts))]
    with h5.writing(output, "results") as file:
        origin.stamp(file)
        parts.put_answers(file, answers)
        h5.put_strings(file, "id", prompts.ids, "the user's own name of each prompt")
        h5.put_strings(file, "text", [decode(a.tokens) for a in answers], "text of each answer")
        load = np.sum([piece.load for piece in pieces], axis=0)
        h5.put(file, "load", load, "rows sent to each expert, by layer and expert [rows]")
        table = tabulate(pieces)
        _put_timings(file, table)
        put_traffic(file, "step", table.traffic)
        layers = [piece.traffic for piece in pieces if piece.traffic]
        put_traffic(file, "layer", _mean(sum(layers[1:], layers[0]) if layers else no_traffic(len(load)), origin.ranks))
        h5.put_strings(file, "exchange/class", CLASSES, "names of the classes of bytes")
    parts.remove(output)


def tabulate(pieces: Sequence[Part]) -> StepTable:
    """The step times of all parts, put together by (attempt, step)."""
    keyed = [((piece.attempt, s.step), s) for piece in pieces for s in piece.steps]
    order = {key: row for row, key in enumerate(sorted({key for key, _ in keyed}))}
    rows = np.array([order[key] for key, _ in keyed], np.int64)
    n = len(order)
    ranks = np.bincount(rows, minlength=n)[:, None]
    tokens, chosen = np.zeros((2, n), np.int64)
    travel = no_traffic(n)
    wall, mean, largest = np.zeros(n), np.zeros((n, len(STAGES))), np.zeros((n, len(STAGES)))
    if n:
        np.add.at(tokens, rows, [s.tokens for _, s in keyed])
        np.add.at(chosen, rows, [s.chosen for _, s in keyed])
        np.maximum.at(wall, rows, [s.wall for _, s in keyed])
        stages = np.array([s.stages for _, s in keyed])
        np.add.at(mean, rows, stages)
        np.maximum.at(largest, rows, stages)
        mean /= ranks
        np.add.at(travel.seconds, rows, [s.exchange for _, s in keyed])
        np.add.at(travel.exposed, rows, [s.exposed for _, s in keyed])
        np.add.at(travel.bytes, rows, [s.bytes for _, s in keyed])
        travel = _mean(travel, ranks[:, 0])
    attempt, step = np.array(sorted(order), np.int64).reshape(n, 2).T
    return StepTable(attempt, step, tokens, chosen, wall, mean, largest, travel)


def _mean(traffic: Traffic, ranks: int | np.ndarray) -> Traffic:
    """Seconds as mean over so many ranks; bytes as they are."""
    return Traffic(traffic.seconds / ranks, traffic.exposed / ranks, traffic.bytes)


def put_traffic(file: h5py.File, over: str, traffic: Traffic) -> None:
    """The exchanges of each step or layer, as `over` says."""
    hidden = 1 - traffic.exposed / np.where(traffic.seconds > 0, traffic.seconds, 1.0)
    h5.put(file, f"exchange/{over}/seconds", traffic.seconds,
           f"exchange of each {over}, from start to arrival, mean over the ranks [s]")
    h5.put(file, f"exchange/{over}/exposed", traffic.exposed,
           "of these, while the rank computed nothing, mean over the ranks [s]")
    h5.put(file, f"exchange/{over}/hidden", np.where(traffic.seconds > 0, np.maximum(hidden, 0), 0.0),
           "part of the exchange that is not exposed")
    h5.put(file, f"exchange/{over}/bytes", traffic.bytes, f"rows sent in each {over}, by class, all ranks [B]")


def traffic(file: h5py.File, path: Path) -> Traffic | None:
    """The exchanges of each step in a results file; None where they were not counted. Raises `InputError`."""
    if "exchange/step" not in file:
        return None
    seconds, exposed = (h5.take(file, f"exchange/step/{name}", path, np.floating, 1) for name in ("seconds", "exposed"))
    return Traffic(seconds, exposed, h5.take(file, "exchange/step/bytes", path, np.integer, 2))


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
    counts = [h5.take(file, f"timings/{name}", path, np.integer, 1)
              for name in ("attempt", "step", "tokens", "chosen")]
    times = [h5.take(file, "timings/wall", path, np.floating, 1),
             *(h5.take(file, f"timings/{name}", path, np.floating, 2) for name in ("mean", "max"))]
    if len({len(column) for column in counts + times}) > 1:
        raise InputError(f"{path}: the datasets in timings differ in length: make the file again")
    attempt, step, tokens, chosen = counts
    wall, mean, largest = times
    moved = traffic(file, path) or no_traffic(len(wall))
    return StepTable(attempt, step, tokens, chosen, wall, mean, largest, moved)


def answers(path: Path) -> list[Answer]:
    """The answers in a results file. Raises `InputError`."""
    with h5.reading(path, "results") as file:
        return parts.take_answers(file, path)
