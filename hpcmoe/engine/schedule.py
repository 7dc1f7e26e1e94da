"""Whose turn it is. The order is fixed, never by readiness, so that all ranks start exchanges alike."""

from collections.abc import Sequence

from hpcmoe.engine.clock import Clock
from hpcmoe.engine.layer import Step
from hpcmoe.types import Outcome


def serial(steps: Sequence[Step], clock: Clock) -> list[Outcome]:
    """One micro-batch after another."""
    return [_finish(step, clock) for step in steps]


def _finish(step: Step, clock: Clock) -> Outcome:
    while True:
        try:
            flight = next(step)
        except StopIteration as end:
            return end.value
        with clock.stage("exchange"):
            flight.wait()
