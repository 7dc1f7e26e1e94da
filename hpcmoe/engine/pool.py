"""What is left to do: prompts that no rank works on, with what is there of their answers."""

from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from hpcmoe.files.prompts import Prompts
from hpcmoe.types import Begun


class Task(NamedTuple):
    """A prompt for any rank."""

    prompt: int
    tokens: np.ndarray
    """`[n]` int32: the prompt's"""
    begun: Begun | None
    """what is there of its answer"""


class Pool:
    """The same on all ranks, which take from it alike. Those that have begun come first."""

    def __init__(self, prompts: Prompts, waiting: Iterable[int], begun: Iterable[Begun] = ()) -> None:
        """`waiting` are rows of `prompts`; `begun` are for some of them, of which the longest counts."""
        self._prompts = prompts
        self._begun = {b.prompt: b for b in sorted(begun, key=lambda b: len(b.tokens))}
        self._waiting = deque(sorted(waiting, key=lambda prompt: (prompt not in self._begun, prompt)))

    def __len__(self) -> int:
        return len(self._waiting)

    def take(self, count: int) -> list[Task]:
        """The next `count`, which are no longer in it."""
        numbers = [self._waiting.popleft() for _ in range(count)]
        return [Task(number, self._prompts[number], self._begun.pop(number, None)) for number in numbers]
