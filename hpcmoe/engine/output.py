"""A job's output: whether it can be written, and what earlier runs left there.

Needs no MPI, so that `check` finds before the queue what `run` would find after it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hpcmoe import paths
from hpcmoe.config import Job
from hpcmoe.errors import InputError, JobError
from hpcmoe.files import begun, parts, place, results, trace
from hpcmoe.types import Begun


@dataclass(frozen=True)
class Left:
    """What earlier runs of a job left at its output."""

    finished: bool
    """whether the output is there, whole"""
    attempt: int
    """the number of the next attempt"""
    done: np.ndarray
    """`[n]` int64 ascending: rows of the prompts that are answered in parts"""
    begun: tuple[Begun, ...] = ()
    """answers to others that have begun"""
    damaged: tuple[tuple[Path, str], ...] = ()
    """parts that are not whole, and what is wrong with each"""
    versions: frozenset[str] = frozenset()
    """of what computed the answers"""

    def words(self) -> str:
        """The same for a person."""
        if self.finished:
            return "finished already"
        if len(self.done) or self.begun:
            more = f", {len(self.begun)} more have begun" if self.begun else ""
            return f"unfinished: {len(self.done)} prompts are answered{more}, a run goes on from there"
        return "not there yet"

    def warnings(self) -> list[str]:
        """What a run does about damage, a line each."""
        return [f"{wrong}: left out, its prompts are answered again" for _, wrong in self.damaged]


def look(job: Job, identity: str, vocabulary: int) -> Left:
    """What is at the output of a job whose model has so many tokens. Changes nothing.

    Raises `JobError` where the output cannot be written, or is not this job's or damaged; `InputError` where a part
    cannot be read.
    """
    output = check_place(job)
    try:
        finished = results.is_finished(output, identity)
    except InputError as error:
        raise JobError(f"the output is damaged: {error}; --overwrite replaces it") from None
    if finished:
        return Left(True, 0, np.empty(0, np.int64))
    earlier = parts.finished(output, identity)
    answered = set(earlier.done.tolist())
    started = tuple(b for b in begun.gather(output, identity)
                    if b.prompt not in answered and begun.fits(b, vocabulary, job.generate.max_new_tokens))
    return Left(False, parts.next_attempt(output), earlier.done, started, earlier.damaged, earlier.versions)


def left_by(job: Job, attempt: int, ranks: Sequence[int], vocabulary: int) -> tuple[set[int], list[Begun]]:
    """What `ranks` had committed in this attempt when they died: the rows of prompts that they answered, and answers
    that they began. Raises `InputError`."""
    output = Path(job.output)
    done = {answer.prompt for path in parts.files(output) if parts.is_by(path, attempt, ranks)
            for answer in parts.read(path).answers}
    started = [b for path in begun.files(output) if parts.is_by(path, attempt, ranks) for b in begun.read(path)]
    return done, [b for b in started if begun.fits(b, vocabulary, job.generate.max_new_tokens)]


def check_place(job: Job) -> Path:
    """The job's output. Raises `JobError` where no results can be put there, or where something else is."""
    output = Path(job.output)
    paths.check_output(output, Path(job.model), Path(job.prompts))
    paths.check_folder(parts.folder(output), f"output {output}")
    if output.exists() and not results.could_be(output):
        raise JobError(f"output {output} is there and not a results file: give another output")
    return output


def clear(job: Job) -> None:
    """Removes what runs left at the job's output, whole, damaged or another job's. Raises `JobError`."""
    output = check_place(job)
    output.unlink(missing_ok=True)
    parts.remove(output)


def tidy(job: Job, left: Left) -> None:
    """Removes what is of no more use: parts of finished results, and files that a dead process began. Sets damaged
    parts aside. Raises `JobError`."""
    output = Path(job.output)
    for path in (output, trace.beside(output)):
        place.sweep(path)
    if left.finished:
        return parts.remove(output)
    parts.sweep(output)
    for path, _ in left.damaged:
        parts.set_aside(path)
