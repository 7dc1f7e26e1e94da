"""Examples that hypothesis draws on rank 0 and all ranks play: it fails and shrinks there while the others follow.

A rank that fails in the middle of an exchange raises an alarm, at which the others leave theirs: nobody waits for ever.
"""

import time
import traceback
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.strategies import SearchStrategy
from mpi4py import MPI

from hpcmoe import launch
from hpcmoe.exchange.watch import Unwatched

EVERY = 0.02
"""Seconds between two looks for an alarm."""
LIMIT = 60.0
"""Seconds that one exchange may take."""
SHRINKING = 60.0
"""Seconds for smaller examples that fail too."""


class Elsewhere(Exception):
    """Another rank has failed."""


class Alarm(Unwatched):
    """A watch whose waits end where any rank fails. Collective over `comm`, which is duplicated."""

    def __init__(self, comm) -> None:
        super().__init__(self._idle)
        self._comm, self._begun = comm.Dup(), 0.0
        self._next = 0.0
        self.broken = False
        """Whether some rank failed in the middle: its exchanges can be neither used nor freed. The same everywhere."""

    def mark(self, *where: Any, **more: Any) -> None:
        """An exchange begins."""
        self._begun = time.monotonic()

    def _idle(self) -> None:
        launch.rest()
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + EVERY
        if self._comm.Iprobe():
            raise Elsewhere
        if now - self._begun > LIMIT:
            raise TimeoutError(f"no progress for {LIMIT:.0f} s")

    def together(self, play: Callable[[], list[str]]) -> list[str]:
        """The problems that `play` finds on any rank, or the traceback that it ends with. Collective."""
        self.mark()
        problems, rings, sent = [], False, []
        try:
            problems = play()
        except Elsewhere:
            problems = ["was left in the middle"]
        except Exception:
            problems, rings = [traceback.format_exc()], True
            sent = [self._comm.Isend(np.empty(0, np.uint8), rank) for rank in range(self._comm.size)]
        launch.meet(self._comm)
        everyone = self._comm.allgather((problems, rings))
        for rank, (_, rang) in enumerate(everyone):
            if rang:
                self.broken = True
                self._comm.Recv(np.empty(0, np.uint8), rank)
        MPI.Request.Waitall(sent)
        return [f"rank {rank}: {problem}" for rank, (found, _) in enumerate(everyone) for problem in found]

    def free(self) -> None:
        """Collective."""
        self._comm.Free()


Play = Callable[[Any], list[str]]
"""What a rank does with an example -> the problems that it found. Collective."""


def conduct(comm, alarm: Alarm, play: Play, examples: SearchStrategy, count: int, first: Iterable = ()) -> None:
    """Fails on all ranks if `play` finds a problem in one of the `first`, or in `count` that are drawn. Collective."""
    __tracebackhide__ = True

    def perform(example: Any) -> list[str]:
        return alarm.together(lambda: play(example))

    def tell(call: tuple[bool, Any] | None = None) -> tuple[bool, Any]:
        """What rank 0 says: an example, or the verdict."""
        launch.meet(comm)
        return comm.bcast(call)

    if comm.rank:
        while (call := tell())[0]:
            perform(call[1])
        verdict = call[1]
    else:
        verdict = ""
        try:
            _lead(lambda example: (tell((True, example)), perform(example))[1], examples, count, first, alarm)
        except Exception:
            verdict = traceback.format_exc()
        finally:
            tell((False, verdict))
    if verdict:
        pytest.fail(verdict, pytrace=False)


def _lead(perform: Play, examples: SearchStrategy, count: int, first: Iterable, alarm: Alarm) -> None:
    failed: dict[Any, list[str]] = {}
    end = float("inf")

    @settings(max_examples=count, deadline=None, derandomize=True, database=None, print_blob=False,
              phases=(Phase.generate, Phase.shrink), suppress_health_check=list(HealthCheck))
    @given(examples)
    def drawn(example: Any) -> None:
        judge(example)

    def judge(example: Any) -> None:
        nonlocal end
        if example not in failed and time.monotonic() < end and not alarm.broken:
            problems = perform(example)
            if problems:
                failed[example] = problems
                end = min(end, time.monotonic() + SHRINKING)
        if example in failed:
            raise AssertionError("\n".join([str(example), *failed[example]]))

    for example in first:
        judge(example)
    drawn()
