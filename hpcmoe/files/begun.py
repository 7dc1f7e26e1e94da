"""Answers that have begun: what a rank has of them at a commit, so that another run, or rank, goes on from there.

`out.h5.parts/begun-ATTEMPT-RANK-SEQ.h5`: `prompt` `[n]` int64, `tokens` int32 and `logprobs` float32, ragged: the new
tokens so far; `first_token`, see `files.first`. Each commit makes a new file and deletes the one before; the newest of
a prompt's is the longest. Such a file is worth time only: one that is lost or damaged is done without.
"""

from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import numpy as np

from hpcmoe.errors import InputError
from hpcmoe.files import first, h5, parts, vet
from hpcmoe.files.parts import Provenance
from hpcmoe.types import Begun

START = 99999
"""In the place of a rank: what an attempt found at its start."""


def files(output: Path) -> list[Path]:
    """Those of `output`, by attempt, rank and sequence number."""
    return sorted(parts.folder(output).glob("begun-[0-9]*-*-*.h5"))


def write(output: Path, attempt: int, rank: int, sequence: int, begun: Sequence[Begun], origin: Provenance) -> Path:
    """Commits what has begun. Raises `JobError` where it cannot be written."""
    path = parts.folder(output) / f"begun-{parts.stem(attempt, rank, sequence)}.h5"
    with h5.writing(path, "begun") as file:
        origin.stamp(file)
        h5.put(file, "prompt", np.array([b.prompt for b in begun], np.int64), "row of each in the prompts file")
        h5.put_ragged(file, "tokens", [b.tokens for b in begun], "int32", "new tokens so far")
        h5.put_ragged(file, "logprobs", [b.logprobs for b in begun], "float32", "log-probability of each token [nat]")
        first.put(file, [b.first for b in begun])
    return path


def read(path: Path) -> tuple[Begun, ...]:
    """What is in one file. Raises `InputError`."""
    with h5.reading(path, "begun") as file:
        prompt = h5.take(file, "prompt", path, np.integer, 1)
        tokens, offsets = h5.ragged(file, "tokens", path)
        logprobs, same = h5.ragged(file, "logprobs", path, np.floating)
        waited = first.take(file, path, len(prompt)).tolist()
    if len(offsets) != len(prompt) + 1 or not np.array_equal(offsets, same):
        raise InputError(f"{path}: prompt, tokens and logprobs differ in length")
    return tuple(Begun(int(number), tokens[begin:end], logprobs[begin:end], seconds)
                 for number, (begin, end), seconds in zip(prompt, pairwise(offsets), waited))


def fits(begun: Begun, vocabulary: int, most: int) -> bool:
    """Whether a job may go on with it: with fewer than `most` tokens, all of the vocabulary."""
    return 0 < len(begun.tokens) < most and bool(begun.tokens.min() >= 0 and begun.tokens.max() < vocabulary)


def settle(output: Path, attempt: int, begun: Sequence[Begun], origin: Provenance) -> None:
    """Puts what `gather` found into one file, of the attempt that goes on from there, in place of all others.

    Raises `JobError`.
    """
    before = files(output)
    if begun:
        kept = write(output, attempt, START, 0, begun, origin)
        before = [path for path in before if path != kept]
    for path in before:
        with suppress(OSError):
            path.unlink()


def gather(output: Path, identity: str) -> tuple[Begun, ...]:
    """The longest of each prompt, by prompt. Raises `JobError` where they belong to another job."""
    longest: dict[int, Begun] = {}
    for path in files(output):
        with suppress(InputError):
            vet.check(path, "begun")
            with h5.reading(path, "begun") as file:
                parts.check_identity(file, path, output, identity)
            for begun in read(path):
                if len(begun.tokens) >= len(longest.get(begun.prompt, begun).tokens):
                    longest[begun.prompt] = begun
    return tuple(longest[prompt] for prompt in sorted(longest))
