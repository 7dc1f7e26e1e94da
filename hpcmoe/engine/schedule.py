"""Whose turn it is. The order is fixed, never by readiness, so that all ranks start exchanges alike."""

import time
from collections.abc import Callable, Sequence

from hpcmoe.engine.clock import Clock
from hpcmoe.engine.layer import Step
from hpcmoe.exchange.interface import Flight
from hpcmoe.launch import Idle
from hpcmoe.types import Outcome

Schedule = Callable[[Sequence[Step], Clock, Idle], list[Outcome]]
"""Brings all steps to their end -> their outcomes; calls the idle function while it waits"""

SHARE = 0.1
"""A pause between two looks, in parts of the time that has passed: so much later at most is an arrival seen."""
LONGEST = 5e-4
"""Seconds of the longest pause: a long message moves on at each look only."""


def serial(steps: Sequence[Step], clock: Clock, idle: Idle) -> list[Outcome]:
    """One micro-batch after another."""
    return [outcome for step in steps for outcome in overlapped([step], clock, idle)]


def overlapped(steps: Sequence[Step], clock: Clock, idle: Idle) -> list[Outcome]:
    """Micro-batches in turn: while one's rows travel, the other's arithmetic runs on the stream.

    At its turn each waits for what it started last, and starts the next; so the work of the others is always begun
    before anything is waited for.
    """
    flights: list[Flight | None] = [next(step) for step in steps]
    outcomes: dict[int, Outcome] = {}
    while len(outcomes) < len(steps):
        for turn, step in enumerate(steps):
            flight = flights[turn]
            if flight is None:
                continue
            with clock.waiting(flight):
                _await(flight, [other for other in flights if other not in (None, flight)],  # type: ignore[misc]
                       idle)
            try:
                flights[turn] = next(step)
            except StopIteration as end:
                flights[turn], outcomes[turn] = None, end.value
    return [outcomes[turn] for turn in range(len(steps))]


def _await(flight: Flight, others: Sequence[Flight], idle: Idle) -> None:
    """Waits for `flight`; meanwhile looks at the others, for MPI moves only while it is called.

    Each look takes the core and the interpreter from the arithmetic, so while there is any the pauses grow with the
    time that has passed.
    """
    begin = time.perf_counter()
    while others and not flight.test():
        waiting = [flight, *(other for other in others if not other.test())]
        idle()
        if any(not other.stage for other in waiting):
            time.sleep(min(LONGEST, SHARE * (time.perf_counter() - begin)))
    flight.wait()
