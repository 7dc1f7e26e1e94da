"""What a rank has finished and not committed yet."""

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hpcmoe.files import parts
from hpcmoe.files.parts import Part, Provenance
from hpcmoe.traffic import Traffic
from hpcmoe.types import Answer, StepTime


class Record:
    """Gathers answers, loads, traffic and step times; commits them as a part every `every` seconds. Local."""

    def __init__(self, output: Path, attempt: int, rank: int, origin: Provenance, every: float,
                 shape: tuple[int, int]) -> None:
        """`shape` is that of the loads, (L, E)."""
        self._output, self._attempt, self._rank, self._origin = output, attempt, rank, origin
        self._every, self._shape, self._sequence = every, shape, 0
        self._begin_anew()

    def _begin_anew(self) -> None:
        self._answers: list[Answer] = []
        self._steps: list[StepTime] = []
        self._load, self._traffic = np.zeros(self._shape, np.int64), Traffic.none(self._shape[0])
        self._since = time.monotonic()

    def add(self, answers: Sequence[Answer], load: np.ndarray, traffic: Traffic, step: StepTime) -> None:
        """Takes up one step; load is `[L, E]` int64, traffic `[L]`."""
        self._answers += answers
        self._steps.append(step)
        self._load += load
        self._traffic += traffic
        if self._answers and time.monotonic() - self._since >= self._every:
            self.commit()

    def commit(self) -> None:
        """Writes what there is as a part. Raises `JobError` where that cannot be done."""
        part = Part(tuple(self._answers), self._load, tuple(self._steps), self._attempt, self._traffic)
        parts.write(self._output, self._attempt, self._rank, self._sequence, part, self._origin)
        self._sequence += 1
        self._begin_anew()
