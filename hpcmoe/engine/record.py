"""What a rank has done and not committed yet."""

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from hpcmoe.engine.sample import Sample
from hpcmoe.files import begun, parts
from hpcmoe.files.bias import Biased
from hpcmoe.files.parts import Part, Provenance
from hpcmoe.traffic import Traffic
from hpcmoe.types import Answer, Begun, StepTime

MOST, LEAST = 512, 32
"""Tokens of a rank's first commit whose experts are kept; half as many of each that follows, and at least so many."""


class Record:
    """Gathers answers, loads, traffic and step times; commits them as a part every `every` seconds, and beside it the
    answers that have begun. Local."""

    def __init__(self, output: Path, attempt: int, rank: int, origin: Provenance, every: float,
                 shape: tuple[int, int, int], check: Callable[[], None], biased: bool = False) -> None:
        """`shape` is (L, E, K); `check` raises where nothing may be written any more; `biased`: as a job with
        `balance.mode = bias` is."""
        self._output, self._attempt, self._rank, self._origin = output, attempt, rank, origin
        self._every, self._shape, self._top_k, self.check, self._sequence = every, shape[:2], shape[2], check, 0
        self._begun: Path | None = None
        self._biased = biased
        self._begin_anew()

    def _begin_anew(self) -> None:
        self._answers: list[Answer] = []
        self._steps: list[StepTime] = []
        room = max(LEAST, MOST >> self._sequence) if self._top_k else 0
        self._sample = Sample(room, (self._shape[0], self._top_k))
        self._load, self._traffic = np.zeros(self._shape, np.int64), Traffic.none(self._shape[0])
        self._computed, self._moved = np.zeros((2, self._shape[0]), np.int64)
        self._scored = 0, (0.0, 0.0)
        self._since = time.monotonic()

    def add(self, answers: Sequence[Answer], load: np.ndarray, computed: np.ndarray, moved: np.ndarray,
            sample: np.ndarray, traffic: Traffic, step: StepTime, unfinished: Callable[[], Sequence[Begun]]) -> None:
        """Takes up one step; load is `[L, E]` int64, computed and moved `[L]` int64, sample `[s, L, K]` int16, traffic
        `[L]`; `unfinished` tells the answers that have begun."""
        self._answers += answers
        self._steps.append(step)
        self._load += load
        self._computed += computed
        self._moved += moved
        self._sample.add(sample)
        self._traffic += traffic
        self.wait(unfinished)

    def wait(self, unfinished: Callable[[], Sequence[Begun]]) -> None:
        """Commits what there is, where it is time; also where no step is to come soon."""
        if (self._answers or self._every) and time.monotonic() - self._since >= self._every:
            self.commit(unfinished())

    def score(self, tokens: int, nats: tuple[float, float]) -> None:
        """Takes up how surprising so many tokens were with a bias, and without; see `files.bias`."""
        self._scored = tokens, nats

    def commit(self, unfinished: Sequence[Begun]) -> None:
        """Writes what there is as a part, and the answers that have begun. Raises `JobError` where that cannot be done.

        A process that dies in between leaves the finished ones in both: the part counts.
        """
        self.check()
        if self._steps or self._scored[0]:
            self._write_part()
        before, self._begun = self._begun, None
        if unfinished:
            self._begun = begun.write(self._output, self._attempt, self._rank, self._sequence, unfinished, self._origin)
        if before:
            with suppress(OSError):  # then it stays until the job is done
                before.unlink()
        self._sequence += 1
        self._begin_anew()

    def _write_part(self) -> None:
        bias = Biased(self._moved, *self._scored) if self._biased else None
        part = Part(tuple(self._answers), self._load, tuple(self._steps), self._attempt, self._traffic,
                    self._computed, self._sample.experts(), bias=bias)
        parts.write(self._output, self._attempt, self._rank, self._sequence, part, self._origin)
