"""An exchange on its way, seen from the schedule: notes when it began and when it was seen to have arrived."""

import time

from hpcmoe.engine.clock import Clock
from hpcmoe.exchange.interface import Rows
from hpcmoe.types import Course


class Trip:
    """A `layer.Pending` around the rows of one exchange."""

    def __init__(self, rows: Rows, course: Course, clock: Clock) -> None:
        """It begins now."""
        self._rows, self.course, self._clock = rows, course, clock
        self._begin, self._ended = time.perf_counter(), False
        self._departed = clock.trace.depart(course.kind)

    def test(self) -> bool:
        """See `Flight`."""
        if not self._ended and self._rows.test():
            self._end()
        return self._ended

    def wait(self) -> None:
        """See `Flight`."""
        if not self._ended:
            self._rows.wait()
            self._end()

    def _end(self) -> None:
        self._rows.wait()
        self._ended = True
        self._clock.trace.arrive(self._departed)
        self._clock.travelled(self.course, self._begin, time.perf_counter())
