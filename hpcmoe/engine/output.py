"""A job's output: whether it can be written, and what earlier runs left there.

Needs no MPI, so that `check` finds before the queue what `run` would find after it.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hpcmoe import paths
from hpcmoe.config import Job
from hpcmoe.errors import InputError, JobError
from hpcmoe.files import parts, place, results, trace


@dataclass(frozen=True)
class Left:
    """What earlier runs of a job left at its output."""

    finished: bool
    """whether the output is there, whole"""
    attempt: int
    """the number of the next attempt"""
    done: np.ndarray
    """`[n]` int64 ascending: rows of the prompts that are answered in parts"""

    def words(self) -> str:
        """The same for a person."""
        if self.finished:
            return "finished already"
        if len(self.done):
            return f"unfinished: {len(self.done)} prompts are answered, a run goes on from there"
        return "not there yet"


def look(job: Job, identity: str) -> Left:
    """What is at the job's output. Changes nothing.

    Raises `JobError` where the output cannot be written, or is not this job's or damaged; `InputError` where a part is.
    """
    output = check_place(job)
    try:
        finished = results.is_finished(output, identity)
    except InputError as error:
        raise JobError(f"the output is damaged: {error}; --overwrite replaces it") from None
    attempt, done = (0, np.empty(0, np.int64)) if finished else parts.finished(output, identity)
    return Left(finished, attempt, done)


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
    """Removes what is of no more use: parts of finished results, and files that a dead process began."""
    output = Path(job.output)
    for path in (output, trace.beside(output)):
        place.sweep(path)
    if left.finished:
        parts.remove(output)
