"""What is left to do: prompts that no rank works on, with what is there of their answers."""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from hpcmoe.files.prompts import Prompts
from hpcmoe.types import Begun

Share = Callable[[Sequence[int], int], np.ndarray]
"""(numbers, how many) -> `[count]` int64: those of the first rank, on all; others give none. Collective"""


class Elsewhere(NamedTuple):
    """What other groups of ranks told last."""

    prompts: int = 0
    """that are not answered yet, and neither in this pool nor in the group's slots"""
    tokens: int = 0
    """new ones"""
    longest: float = 0.0
    """seconds of a step"""


class Task(NamedTuple):
    """A prompt for any rank."""

    prompt: int
    tokens: np.ndarray
    """`[n]` int32: the prompt's"""
    begun: Begun | None
    """what is there of its answer"""


class Pool:
    """The same on all ranks, which take from it alike. Those that have begun come first.

    This one is whole from the beginning; `stock.Stock` is that of one of several groups of ranks, which is filled up.
    """

    ended = True
    """whether nothing is going to come into it any more, and the ranks need not stay for others either"""
    news = 0
    """numbers that this rank has for the others: what it says in a vote"""
    told = 0
    """the reason to end that others told this rank; see `Notice.reason`"""
    elsewhere = Elsewhere()
    """what this rank knows of others"""

    def __init__(self, prompts: Prompts, waiting: Iterable[int], begun: Iterable[Begun] = ()) -> None:
        """`waiting` are rows of `prompts`; `begun` are for some of them, of which the longest counts."""
        self._prompts = prompts
        self._begun = {b.prompt: b for b in sorted(begun, key=lambda b: len(b.tokens))}
        self._waiting = deque(in_turn(waiting, self._begun))

    def __len__(self) -> int:
        return len(self._waiting)

    def take(self, count: int) -> list[Task]:
        """The next `count`, which are no longer in it."""
        numbers = [self._waiting.popleft() for _ in range(count)]
        return [Task(number, self._prompts[number], self._begun.pop(number, None)) for number in numbers]

    def look(self) -> None:
        """Takes up what others have sent to this rank, between two steps. Local."""

    def attend(self) -> None:
        """Answers others, where this rank waits for its own group in a step. Local."""

    def hear(self, news: int, share: Share) -> None:
        """Takes up so many numbers that the group's first rank has. Collective over the group, where there are any."""

    def want(self, free: int, active: int, tokens: int, longest: float) -> None:
        """Begins to ask for more, behind a deal that left so many slots free and made so many active; tokens are the
        group's new ones so far, longest the seconds of a step. Local."""

    def nap(self) -> None:
        """Leaves the core to others, where there is nothing to do but to wait for them."""

    def leave(self, stopped: bool) -> None:
        """The steps are over on this rank, before the prompts where `stopped`: all others hear of it. Local, but the
        first ranks of all groups must come here."""


def in_turn(waiting: Iterable[int], begun: Iterable[int]) -> list[int]:
    """Rows of prompts as they are dealt: those that have begun first."""
    first = set(begun)
    return sorted(waiting, key=lambda prompt: (prompt not in first, prompt))
