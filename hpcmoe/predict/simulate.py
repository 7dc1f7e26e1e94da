"""Steps of a job under a simulated clock: `engine.layer`'s generators, in the turns of `engine.schedule`.

Ranks take turns by their own times: the one that is furthest behind goes on until it has to wait. What waits for others
goes on when the last of them has come.
"""

import heapq
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from math import inf

import numpy as np

from hpcmoe.engine import layer, schedule
from hpcmoe.engine.batch import split
from hpcmoe.predict import demand as asked
from hpcmoe.predict.cost import Work
from hpcmoe.predict.demand import Demand
from hpcmoe.predict.layout import Layout, Load
from hpcmoe.predict.machine import Hardware
from hpcmoe.predict.meetings import Meetings
from hpcmoe.predict.network import CLOSE, Defect
from hpcmoe.predict.rank import Crossing, Rank
from hpcmoe.predict.rows import Drawn
from hpcmoe.predict.segments import Simulated
from hpcmoe.spec import ModelSpec
from hpcmoe.traffic import Traffic
from hpcmoe.types import Batch, Span

STEPS = 10
"""Steps of one token for each sequence."""


@dataclass(frozen=True)
class Given:
    """What a simulation takes as given, beside model, hardware and layout."""

    demand: Demand
    even: bool = False
    """every expert has the rows that are expected of it; else they are drawn"""
    slowed: int = 0
    """ranks of a group"""
    factor: float = 1.0
    """whose arithmetic takes so many times as long"""
    seed: int = 0


@dataclass(frozen=True)
class Step:
    """One step of all ranks."""

    tokens: int
    """of each rank"""
    seconds: float
    stages: np.ndarray
    """`[len(STAGES)]` float64 seconds, means over the ranks"""
    traffic: Traffic
    """of a rank: means, bytes too"""
    imbalance: float
    """(max - mean) / mean of the rows that ranks compute, mean over the layers; 0 without experts"""
    done: dict[str, tuple[Work, float]]
    """by stage: what the busiest rank computed, and its seconds"""


@dataclass(frozen=True)
class Simulation:
    """What came of it."""

    steps: tuple[Step, ...]
    modes: tuple[str, ...]
    """how rows travelled"""


@dataclass
class _State:
    """A rank that is driven."""

    rank: Rank
    segments: Simulated
    life: Generator[schedule.Pause, None, None] = field(init=False)
    pause: schedule.Pause | None = None
    parked: bool = False
    """whether it waits"""
    steps: list[tuple[float, np.ndarray, Traffic]] = field(default_factory=list)
    done: list[dict[str, tuple[Work, float]]] = field(default_factory=list)
    due: float = inf
    """when it is looked at next"""

    def park(self, heap: list[tuple[float, int]], at: float) -> None:
        """Until `at`, or now where that is past, if not until something earlier already."""
        wake = max(at, self.rank.now)
        if wake < self.due:
            self.due = wake
            heapq.heappush(heap, (wake, self.rank.number))


def batch_of(model: ModelSpec, spans: Sequence[tuple[int, int]]) -> Batch:
    """Spans of (rows, tokens behind which), the last token of each asked for."""
    rows = np.array([count for count, _ in spans], np.int64)
    first = np.cumsum(rows) - rows
    made = tuple(Span(slot, int(at), count, cached) for slot, (at, (count, cached)) in enumerate(zip(first, spans)))
    none = np.zeros(int(rows.sum()), np.int32)
    last = (first + rows - 1).astype(np.int32)
    return Batch(none, none, made, last, np.zeros(len(made), np.int64), np.full(len(made), -1, np.int32))


def decode(model: ModelSpec, load: Load, step: int) -> Batch:
    """The next token of every sequence, half of whose new ones are there, and `step` more."""
    behind = min(load.prompt + load.new // 2 + step, model.context - 1)
    return batch_of(model, [(1, behind)] * load.sequences)


def prefill(model: ModelSpec, load: Load) -> Batch:
    """As many prompts as a step takes, or a part of one."""
    left, spans = min(load.tokens, load.sequences * load.prompt), []
    while left > 0:
        spans.append((min(load.prompt, left), 0))
        left -= load.prompt
    return batch_of(model, spans)


def simulate(model: ModelSpec, hw: Hardware, layout: Layout, given: Given, batches: Sequence[Batch]) -> Simulation:
    """Steps of these batches, the same on every rank. One group of ranks: others do the same beside it.

    Raises `Defect` where bytes are lost, a stage beats its roofline, or anything is busy for longer than it takes.
    """
    classes = asked.classes(layout.group, given.slowed, given.factor, _alike(model, layout, given))
    drawn = Drawn(model, hw, layout, given.demand, classes, given.seed, given.even)
    heap: list[tuple[float, int]] = []
    states: list[_State] = []

    def resolved(number: int, at: float) -> None:
        if states[number].parked:
            states[number].park(heap, at)
    meetings = Meetings(drawn, resolved)
    turns = schedule.overlapped_turns if layout.overlapped else schedule.serial_turns
    in_turns, turn = (hw.device.in_turns, hw.overhead.turn) if layout.overlapped and layout.parts > 1 else (1.0, 0.0)
    for number, slow in enumerate(classes.slow.tolist()):
        rank = Rank(number, model.layers, hw.device, slow * in_turns, turn)
        state = _State(rank, Simulated(rank, meetings))
        state.life = _life(state, meetings, batches, layout.parts, turns)
        states.append(state)
        state.due = 0.0
        heap.append((0.0, number))
    while heap:
        at, number = heapq.heappop(heap)
        if at == states[number].due:
            _go_on(states[number], at, heap)
    stuck = [state.rank.number for state in states if state.pause]
    if stuck:
        raise Defect(f"ranks {stuck} wait for ever")
    _check(states, meetings)
    return _result(states, meetings, batches)


def _alike(model: ModelSpec, layout: Layout, given: Given) -> bool:
    """Whether all ranks have the same rows in every layer."""
    likely = given.demand.chosen
    same = given.even and bool((likely == likely[:, :1]).all()) and not given.slowed
    return not model.moe or (same and model.experts * layout.shards % layout.group == 0)


def _go_on(state: _State, at: float, heap: list[tuple[float, int]]) -> None:
    """A rank goes on until it has to wait for what ends later, or for others."""
    rank, state.parked, state.due = state.rank, False, inf
    rank.now = max(rank.now, at)
    while not state.pause or len(state.pause.watched) > 1 or state.pause.flight.test():
        try:
            state.pause = next(state.life)
        except StopIteration:
            state.pause = None
            return
        if len(state.pause.watched) > 1:  # all have been looked at: time must pass
            break
    state.parked = True
    state.park(heap, rank.wake)


def _life(state: _State, meetings: Meetings, batches: Sequence[Batch], parts: int,
          turns: Callable) -> Generator[schedule.Pause, None, None]:
    """All steps of a rank."""
    rank, clock = state.rank, state.rank.clock
    cuts: list[list[Batch]] = [_cut(meetings, number, batch, parts) for number, batch in enumerate(batches)]
    for number, cut in enumerate(cuts):
        begin = rank.now
        vote: Crossing = meetings.tell(rank, f"vote {number}", None)
        with clock.voting():
            yield schedule.Pause(vote, (vote,))
        meetings.next_step(number + 1)
        rank.now += meetings.drawn.hw.overhead.step
        yield from turns([layer.step(state.segments, batch, n) for n, batch in enumerate(cut)], clock)
        state.steps.append((rank.now - begin, clock.read(), clock.read_traffic().total()))
        state.done.append(rank.done)
        rank.done = {}


def _cut(meetings: Meetings, number: int, batch: Batch, parts: int) -> list[Batch]:
    """The micro-batches of a step, which all ranks share."""
    return meetings.cuts.setdefault(number, split(batch, parts))


def _check(states: Sequence[_State], meetings: Meetings) -> None:
    """Raises `Defect` where something was busy for longer than the simulation lasted."""
    wall = max(state.rank.now for state in states)
    meetings.network.check(wall)
    for state in states:
        rank = state.rank
        worked = sum(_seconds(done) for done in state.done)
        if abs(rank.busy() - worked) > CLOSE * max(wall, worked) or worked > wall * (1 + CLOSE):
            raise Defect(f"rank {rank.number} computed for {worked:.6f} s of {wall:.6f} s")
        for seconds, _, traffic in state.steps:
            if not traffic.exposed <= traffic.seconds + 1e-9 or not traffic.seconds <= seconds + 1e-9:
                raise Defect(f"rank {rank.number} waited for longer than rows travelled, or a step took")


def _result(states: Sequence[_State], meetings: Meetings, batches: Sequence[Batch]) -> Simulation:
    of = meetings.drawn.classes.of / meetings.drawn.classes.of.sum()

    def mean(values: Sequence) -> np.ndarray:
        return np.tensordot(of, np.asarray(values, np.float64), 1)
    steps = []
    for number, batch in enumerate(batches):
        mine = [state.steps[number] for state in states]
        traffic = [found for *_, found in mine]
        whole = Traffic(mean([t.seconds for t in traffic]), mean([t.exposed for t in traffic]),
                        np.rint(mean([t.bytes for t in traffic])).astype(np.int64))
        steps.append(Step(batch.rows, max(seconds for seconds, *_ in mine), mean([stages for _, stages, _ in mine]),
                          whole, meetings.imbalance(number + 1), max((state.done[number] for state in states),
                                                                     key=_seconds)))
    return Simulation(tuple(steps), tuple(sorted(meetings.modes)))


def _seconds(done: dict[str, tuple[Work, float]]) -> float:
    return sum(seconds for _, seconds in done.values())

