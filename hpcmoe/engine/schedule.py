"""Whose turn it is. The order is fixed, never by readiness, so that all ranks start exchanges alike."""

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Pause:
    """Nothing can go on until one of some flights is at its end."""

    flight: Flight
    """what the turn waits for"""
    watched: tuple[Flight, ...]
    """all that is looked at meanwhile, itself included; just itself where there is nothing else"""


Turns = Generator[Pause, None, list[Outcome]]
"""Micro-batches in turn, up to each pause. To be gone on with when time has passed; behind a pause of one flight once
that is at its end."""


def serial(steps: Sequence[Step], clock: Clock, idle: Idle, attend: Idle) -> list[Outcome]:
    """One micro-batch after another."""
    return _drive(serial_turns(steps, clock), idle, attend)


def overlapped(steps: Sequence[Step], clock: Clock, idle: Idle, attend: Idle) -> list[Outcome]:
    """Micro-batches in turn: while one's rows travel, the other's arithmetic runs on the stream."""
    return _drive(overlapped_turns(steps, clock), idle, attend)


def serial_turns(steps: Sequence[Step], clock: Clock) -> Turns:
    """What `serial` does, with its waits left to the caller."""
    outcomes = []
    for step in steps:
        outcomes += yield from overlapped_turns([step], clock)
    return outcomes


def overlapped_turns(steps: Sequence[Step], clock: Clock) -> Turns:
    """What `overlapped` does, with its waits left to the caller.

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

    while flights:
        for turn in range(len(steps)):
            while turn in flights:
                with clock.waiting(flights[turn]):
                    while len(flights) > 1 and not look(turn):
                        yield Pause(flights[turn], tuple(flights.values()))
                    yield Pause(flights[turn], (flights[turn],))
                advance(turn)
                if isinstance(flights.get(turn), Trip):
                    break
    return [outcomes[turn] for turn in range(len(steps))]


def _drive(turns: Turns, idle: Idle, attend: Idle) -> list[Outcome]:
    """Waits at each pause: between two looks as `Schedule` says, and in naps while there is arithmetic."""
    flight, begin = None, 0.0
    with closing(turns):
        while True:
            try:
                pause = next(turns)
            except StopIteration as end:
                return end.value
            if len(pause.watched) == 1:
                pause.flight.wait()
                flight = None
                continue
            if pause.flight is not flight:
                flight, begin = pause.flight, time.perf_counter()
            (idle if flight.stage else attend)()
            if computed := next((other for other in pause.watched if _runs(other)), None):
                computed.nap(min(LONGEST, SHARE * (time.perf_counter() - begin)))


def _runs(flight: Flight) -> TypeGuard[Event]:
    """Whether it is arithmetic that the stream has yet to end."""
    return isinstance(flight, Event) and not flight.test()
