"""A simulated rank: its main thread's time, and the stream that computes beside it."""

from collections import deque
from math import inf

from hpcmoe.engine.clock import Clock
from hpcmoe.engine.stream import Event
from hpcmoe.predict.cost import Work
from hpcmoe.predict.machine import Device
from hpcmoe.predict.network import CLOSE, Defect


class Rank:
    """Stands for all ranks of its class."""

    def __init__(self, number: int, layers: int, device: Device, slow: float, turn: float = 0.0) -> None:
        """`slow`: how many times as long its arithmetic takes; `turn`: seconds of each piece of it beside that."""
        self.number, self.device, self._slow, self._turn = number, device, slow, turn
        self.now = 0.0
        """seconds on its main thread"""
        self.pending: list[Computed | Crossing] = []
        """what is under way"""
        self.done: dict[str, tuple[Work, float]] = {}
        """by stage: all that was computed, and its seconds"""
        self._free = self._worked = 0.0
        self._spans = deque[tuple[float, float]]()
        self.clock = Clock(layers, self.busy, now=lambda: self.now)

    def compute(self, *works: Work, layer: int = -1, micro_batch: int = -1, rows: int = -1) -> "Computed":
        """Work goes to the stream; its end."""
        for work in works:
            self._run(work, self._turn / len(works), layer, micro_batch, rows)
        return Computed(self, self._free)

    def _run(self, work: Work, turn: float, layer: int, micro_batch: int, rows: int) -> None:
        seconds = work.seconds * self._slow + turn
        least = max(work.bytes / self.device.rate, work.flops / self.device.flops)
        if seconds < least * (1 - CLOSE):
            raise Defect(f"{work.stage} takes {seconds:.3e} s, and its roofline {least:.3e} s")
        begin = max(self._free, self.now)
        self.now += work.launch
        self._free = max(begin + seconds, self.now if work.launch else begin)
        seconds = self._free - begin
        if seconds:
            self._spans.append((begin, self._free))
        self.clock.add(work.stage, begin, self._free, layer, micro_batch, rows)
        before, taken = self.done.get(work.stage, (Work(work.stage), 0.0))
        self.done[work.stage] = before + work, taken + seconds

    def busy(self) -> float:
        """Seconds that the stream has worked, up to now; see `stream.Stream`."""
        while self._spans and self._spans[0][1] <= self.now:
            begin, end = self._spans.popleft()
            self._worked += end - begin
        if self._spans and self._spans[0][0] < self.now:
            return self._worked + self.now - self._spans[0][0]
        return self._worked

    @property
    def wake(self) -> float:
        """When the next of what is under way ends; inf where none is known to."""
        now, first = self.now, inf
        self.pending = [flight for flight in self.pending if flight.at > now]
        for flight in self.pending:
            if flight.at < first:
                first = flight.at
        return first


class Computed(Event):
    """The end of something on a simulated stream."""

    def __init__(self, rank: Rank, at: float) -> None:
        super().__init__()
        self.at, self._rank = at, rank
        rank.pending.append(self)

    def test(self) -> bool:
        """See `Flight`."""
        return self.at <= self._rank.now

    def nap(self, seconds: float) -> None:
        """Nothing here sleeps."""

    def wait(self) -> None:
        """See `Flight`; whoever drives the schedule has let the time pass."""


class Crossing:
    """A rank's part in an exchange: its end is not known before all take part. A `Flight`."""

    stage = "exchange"

    def __init__(self, rank: Rank) -> None:
        self.at, self._rank = inf, rank
        rank.pending.append(self)

    def test(self) -> bool:
        """See `Flight`."""
        return self.at <= self._rank.now

    def wait(self) -> None:
        """See `Flight`; whoever drives the schedule has let the time pass."""
