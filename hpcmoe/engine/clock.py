"""Where the seconds of a step go: by stage, and of the exchange by layer."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import numpy as np

from hpcmoe.engine.trace import Untraced
from hpcmoe.engine.trip import Trip
from hpcmoe.exchange.interface import Flight
from hpcmoe.traffic import Traffic
from hpcmoe.types import STAGES


class Clock:
    """Adds up seconds and bytes until they are read, and tells the trace of each span."""

    def __init__(self, layers: int = 0, busy: Callable[[], float] = float, trace: Untraced | None = None,
                 now: Callable[[], float] | None = None) -> None:
        """`busy` is that of the stream (see `Stream`): what it works during a wait hides the wait. `now` tells the
        time."""
        self.trace = trace or Untraced()
        self._busy, self._now, self._traffic = busy, now or time.perf_counter, Traffic.none(layers)
        self._seconds = dict.fromkeys(STAGES, 0.0)
        self._under_way: list[Trip] = []
        self._seen = self._worked = 0.0
        self._waits = False

    @contextmanager
    def stage(self, name: str, layer: int = -1, micro_batch: int = -1, rows: int = -1) -> Iterator[None]:
        """The block computes: its time counts for stage `name`. The rest is for the trace, -1 where it has no sense."""
        self.trace.push(name)
        begin = self._now()
        try:
            yield
        finally:
            end = self._now()
            self._seconds[name] += end - begin
            self.trace.pop("pack" if name == "pack" else "compute", name, begin, end, layer, micro_batch, rows)

    def add(self, name: str, begin: float, end: float, layer: int, micro_batch: int, rows: int) -> None:
        """A stage that was computed behind the caller's back, at times of `time.perf_counter`."""
        self._seconds[name] += end - begin
        self.trace.add("compute", name, begin, end, layer, micro_batch, rows)

    def depart(self, flight: Flight, kind: str, layer: int, micro_batch: int, rows: int,
               sent: Callable[[], np.ndarray]) -> Trip:
        """An exchange begins now: `rows` rows leave; `sent` tells their bytes at the end, `[len(CLASSES)]` int64. See
        `Trip`."""
        span = self.trace.start(kind)

        def landed(trip: Trip) -> None:
            assert trip.end is not None
            self._travel(trip.end)
            self._under_way.remove(trip)
            count = sent()
            self._traffic.bytes[layer] += count
            self.trace.finish(span, "exchange", kind, trip.begin, trip.end, layer, micro_batch, rows, count)
        trip = Trip(flight, kind, layer, micro_batch, landed, self._now)
        self._travel(trip.begin)
        self._under_way.append(trip)
        return trip

    def _travel(self, now: float) -> None:
        """The time since the last call counts once, however many are under way: for the layer of the oldest.

        Where the main thread waited in it, what the stream did not work of it is exposed.
        """
        worked = self._busy()
        if self._under_way:
            layer, passed = self._under_way[0].layer, now - self._seen
            self._traffic.seconds[layer] += passed
            if self._waits:
                self._traffic.exposed[layer] += max(0.0, passed - (worked - self._worked))
        self._seen, self._worked = now, worked

    def starting(self, trip: Trip) -> AbstractContextManager[None]:
        """The block starts an exchange, and may wait for counts."""
        return self._waiting("start", trip.stage, trip)

    def waiting(self, flight: Flight) -> AbstractContextManager[None]:
        """The block waits for `flight`."""
        if isinstance(flight, Trip):
            return self._waiting(flight.kind, flight.stage, flight)
        if flight.stage:
            return self._waiting("counts", flight.stage, None)
        return nullcontext() if flight.test() else self._waiting("compute", "", None)

    def voting(self) -> AbstractContextManager[None]:
        """The block waits for what all ranks say of themselves."""
        return self._waiting("vote", "exchange", None)

    @contextmanager
    def _waiting(self, name: str, stage: str, trip: Trip | None) -> Iterator[None]:
        """The block waits; its time counts for `stage`, for none where that is ""."""
        self.trace.push(name)
        begin = self._now()
        self._travel(begin)
        self._waits = bool(stage)
        try:
            yield
        finally:
            end = self._now()
            self._travel(end)
            self._waits = False
            if stage:
                self._seconds[stage] += end - begin
            self.trace.pop("wait", name, begin, end, *((trip.layer, trip.micro_batch) if trip else ()))

    def read(self) -> np.ndarray:
        """`[stages]` float64 seconds since the last call."""
        seconds = np.array(list(self._seconds.values()))
        self._seconds = dict.fromkeys(STAGES, 0.0)
        return seconds

    def read_traffic(self) -> Traffic:
        """`[L]`: of the exchanges since the last call, by layer."""
        traffic, self._traffic = self._traffic, Traffic.none(len(self._traffic.seconds))
        return traffic
