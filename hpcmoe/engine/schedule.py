"""Whose turn it is. The order is fixed, never by readiness, so that all ranks start exchanges alike."""

import time
from collections.abc import Callable, Sequence
from typing import TypeGuard

from hpcmoe.engine.clock import Clock
from hpcmoe.engine.layer import Step
from hpcmoe.engine.stream import Event
from hpcmoe.engine.trip import Trip
from hpcmoe.exchange.interface import Flight
from hpcmoe.launch import Idle
from hpcmoe.types import Outcome

Schedule = Callable[[Sequence[Step], Clock, Idle, Idle], list[Outcome]]
"""Brings all steps to their end -> their outcomes; calls the first function while it waits for others, the second one
while it waits for its own arithmetic"""

SHARE = 0.2
"""A nap between two looks, in parts of the time that has passed; each look takes the core and the interpreter from the
arithmetic."""
LONGEST = 2e-3
"""Seconds of the longest nap: a long message moves on at each look only."""


def serial(steps: Sequence[Step], clock: Clock, idle: Idle, attend: Idle) -> list[Outcome]:
    """One micro-batch after another."""
    return [outcome for step in steps for outcome in overlapped([step], clock, idle, attend)]


def overlapped(steps: Sequence[Step], clock: Clock, idle: Idle, attend: Idle) -> list[Outcome]:
    """Micro-batches in turn: while one's rows travel, the other's arithmetic runs on the stream.

    A turn ends when the step's next rows have left, or the step itself. Whoever waits in it hands the others' rows,
    where they have arrived, to the stream: that starts no exchange, so it needs no turn, and the stream need not wait.
    """
    flights: dict[int, Flight] = {turn: next(step) for turn, step in enumerate(steps)}
    outcomes: dict[int, Outcome] = {}

    def advance(turn: int) -> None:
        try:
            flights[turn] = next(steps[turn])
        except StopIteration as end:
            outcomes[turn] = end.value
            del flights[turn]

    def look(mine: int) -> bool:
        """Moves all that is under way on; whether `mine` is at its end."""
        for turn in list(flights):
            if turn != mine and flights[turn].test() and isinstance(flights[turn], Trip):
                advance(turn)
        return flights[mine].test()

    def await_and_advance(turn: int) -> None:
        """Waits for what the step waits for, and continues it."""
        begin = time.perf_counter()
        between = idle if flights[turn].stage else attend
        with clock.waiting(flights[turn]):
            while len(flights) > 1 and not look(turn):
                between()
                if computed := next((flight for flight in flights.values() if _runs(flight)), None):
                    computed.nap(min(LONGEST, SHARE * (time.perf_counter() - begin)))
            flights[turn].wait()
        advance(turn)

    while flights:
        for turn in range(len(steps)):
            while turn in flights:
                await_and_advance(turn)
                if isinstance(flights.get(turn), Trip):
                    break
    return [outcomes[turn] for turn in range(len(steps))]


def _runs(flight: Flight) -> TypeGuard[Event]:
    """Whether it is arithmetic that the stream has yet to end."""
    return isinstance(flight, Event) and not flight.test()
