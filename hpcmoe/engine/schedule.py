"""Whose turn it is. The order is fixed, never by readiness, so that all ranks start exchanges alike."""

from collections.abc import Callable, Sequence

from hpcmoe.engine.clock import Clock
from hpcmoe.engine.layer import Step
from hpcmoe.exchange.interface import Flight, until
from hpcmoe.launch import rest
from hpcmoe.types import Outcome

Schedule = Callable[[Sequence[Step], Clock], list[Outcome]]
"""Brings all steps to their end -> their outcomes"""


def serial(steps: Sequence[Step], clock: Clock) -> list[Outcome]:
    """One micro-batch after another."""
    return [outcome for step in steps for outcome in overlapped([step], clock)]


def overlapped(steps: Sequence[Step], clock: Clock) -> list[Outcome]:
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
            with clock.stage(flight.stage):
                _await(flight, [other for other in flights if other not in (None, flight)])  # type: ignore[misc]
            try:
                flights[turn] = next(step)
            except StopIteration as end:
                flights[turn], outcomes[turn] = None, end.value
    return [outcomes[turn] for turn in range(len(steps))]


def _await(flight: Flight, others: Sequence[Flight]) -> None:
    """Waits for `flight`; meanwhile looks at the others, for MPI moves only while it is called."""
    def idle() -> None:
        for other in others:
            other.test()
        rest()
    if others:
        until(flight.test, idle)
    flight.wait()
