"""The step loop: deal prompts, run a step, take up its tokens, until the pool is empty everywhere."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from hpcmoe.engine import layer
from hpcmoe.engine.batch import Sequences, deal, split
from hpcmoe.engine.device import RankSegments
from hpcmoe.engine.pool import Pool
from hpcmoe.engine.progress import Progress, So
from hpcmoe.engine.ways import Turns
from hpcmoe.exchange.interface import until
from hpcmoe.exchange.watch import Unwatched, Watch
from hpcmoe.notice import Notice
from hpcmoe.traffic import Traffic
from hpcmoe.types import Answer, Batch, Begun, Outcome, StepTime

AHEAD = 2.0
"""The next step and a commit may take so many times as long as the longest so far."""


@dataclass(frozen=True)
class Stop:
    """Why the steps ended before the prompts did; the same on all ranks."""

    rank: int
    """the first one that had notice"""
    reason: int
    """see `Notice.reason`"""
    waiting: int
    """prompts that no rank has begun"""
    begun: int
    """prompts in slots, on all ranks"""
    steps: int
    """that were done before"""


@dataclass
class Tally:
    """What this rank has done, whatever became of the others."""

    prompts: int
    """of the run, on all ranks"""
    step: int = 0
    """the number of the next one; the same on all ranks"""
    tokens: int = 0
    answered: list[int] = field(default_factory=list)
    """rows of prompts"""
    longest: float = 0.0
    """seconds of a step"""
    computed: int = 0
    """rows that this rank's experts computed"""
    seconds: float = 0.0
    """of exchanges"""
    exposed: float = 0.0
    """seconds of them"""


class Balance(Protocol):
    """What evens the load between steps."""

    taken: int
    """tasks that all ranks had done in a vote that this rank saw; others may have seen one vote less, or more"""

    @property
    def ready(self) -> int:
        """What this rank says in a vote: how many of its tasks it has done."""
        ...

    def add(self, load: np.ndarray) -> None:
        """Takes up the rows of a step; load `[L, E]` int64 are this rank's."""

    def between(self, ready: np.ndarray, step: int) -> None:
        """What is due before step number `step`; ready `[R]` is what all ranks said in one vote. Collective."""

    def undo(self, taken: int) -> None:
        """As if this rank had not seen the last vote, where others, who took so many tasks, did not. Local."""

    def close(self) -> None:
        """No task is begun any more, and none is under way. Local."""

    def free(self) -> None:
        """Collective."""


class Taker(Protocol):
    """What takes up what comes of steps: a `Record`."""

    def add(self, answers: Sequence[Answer], load: np.ndarray, computed: np.ndarray, moved: np.ndarray,
            sample: np.ndarray, traffic: Traffic, step: StepTime, unfinished: Callable[[], Sequence[Begun]]) -> None:
        """See `Record.add`."""

    def wait(self, unfinished: Callable[[], Sequence[Begun]]) -> None:
        """See `Record.wait`."""


class Vote:
    """What every rank says of itself between two steps. Collective over `comm`."""

    def __init__(self, comm, watch: Watch | Unwatched) -> None:
        self._comm, self._watch = comm.Dup(), watch
        self._all = np.zeros((comm.size, 10), np.int64)

    def __call__(self, free: int, active: int, ahead: int, reason: int, ready: int, news: int,
                 tally: Tally) -> np.ndarray:
        """`[R, 10]` int64: each rank's free and taken slots, tokens ahead, its reason to end now (`Notice.reason`),
        what it is ready for (`Balance.ready`), what it has for the others (`Pool.news`); of its tally tokens, computed
        rows, µs of exchanges and exposed µs."""
        self._watch.mark("vote")
        mine = np.array([free, active, ahead, reason, ready, news, tally.tokens, tally.computed,
                         int(1e6 * tally.seconds), int(1e6 * tally.exposed)], np.int64)
        request = self._comm.Iallgather(mine, self._all)
        until(request.Test, self._watch.idle)
        return self._all

    def share(self, mine: Sequence[int], count: int) -> np.ndarray:
        """A `pool.Share`."""
        values = np.zeros(count, np.int64)
        values[:len(mine)] = mine
        request = self._comm.Ibcast(values)
        until(request.Test, self._watch.idle)
        return values

    def free(self) -> None:
        """Collective."""
        self._comm.Free()


def generate(vote: Vote, rank: int, pool: Pool, sequences: Sequences, segments: RankSegments, turns: Turns,
             record: Taker, progress: Progress, notice: Notice, tally: Tally,
             balance: Balance | None = None) -> Stop | None:
    """Answers the prompts in `pool`, the same on all ranks, in steps that are cut as `turns` says. The ranks may be one
    of several groups, whose steps do not depend on each other.

    Where any rank has notice to end, all do so before their next step: what came of it is returned.
    Collective. A rank without sequences takes part in every step: its experts serve the others. Where MPI raises in
    between, `sequences`, `record` and `tally` are as before the step or behind it, and the step can be run again.
    """
    clock = segments.clock
    while True:
        begin, clock.trace.step = time.perf_counter(), tally.step
        pool.look()
        with clock.voting():
            state = vote(sequences.free, sequences.active, sequences.ahead,
                         notice.reason(AHEAD * max(tally.longest, pool.elsewhere.longest)) or pool.told,
                         balance.ready if balance else 0, pool.news, tally)
            pool.hear(int(state[0, 5]), vote.share)
        free, active, tokens = (int(total) for total in state[:, [0, 1, 6]].sum(axis=0))
        ranks, others = deal(state[:, 0], len(pool)), pool.elsewhere
        ended = not ranks and not active and pool.ended
        if ended or progress.due():
            told = state.copy()
            progress.update(So(tally.prompts - len(pool) - active - others.prompts, active,
                               np.append(told[:, 6], others.tokens), told[:, 7], told[:, 8:]))
        if ended:
            return None
        if state[:, 3].any():
            first = int(np.flatnonzero(state[:, 3])[0])
            return Stop(first, int(state[first, 3]), len(pool), active, tally.step)
        tasks = pool.take(len(ranks))
        pool.want(free - len(ranks), active + len(ranks), tokens, tally.longest)
        if not ranks and not active:
            segments.watch.idle()
            pool.nap()
            record.wait(sequences.begun)
            clock.read()  # no step's
            continue
        if balance:
            balance.between(state[:, 4], tally.step)
        clock.trace.push("step")
        ahead = state[:, 2].copy()
        for task, taker in zip(tasks, ranks):
            ahead[taker] += len(task.tokens)
            if taker == rank:
                sequences.admit(*task)
        batches, outcomes = _step(sequences, segments, turns, min(int(ahead.max()), sequences.max_tokens))
        answers = [a for pair in zip(batches, outcomes) for a in sequences.advance(*pair)]
        rows, chosen = sum(batch.rows for batch in batches), sum(len(outcome.token) for outcome in outcomes)
        tally.answered += [answer.prompt for answer in answers]
        tally.tokens += chosen
        traffic, end = clock.read_traffic(), time.perf_counter()
        clock.trace.pop("step", "step", begin, end, rows=rows)
        load, computed, moved = (np.sum([getattr(outcome, name) for outcome in outcomes], axis=0)
                                 for name in ("load", "computed", "moved"))
        whole = traffic.total()
        tally.computed += int(computed.sum())
        tally.seconds, tally.exposed = tally.seconds + float(whole.seconds), tally.exposed + float(whole.exposed)
        if balance:
            balance.add(load)
        record.add(answers, load, computed, moved, np.concatenate([outcome.sample for outcome in outcomes]), traffic,
                   StepTime(tally.step, rows, chosen, end - begin, clock.read(), whole), sequences.begun)
        tally.step, tally.longest = tally.step + 1, max(tally.longest, time.perf_counter() - begin)


def _step(sequences: Sequences, segments: RankSegments, turns: Turns,
          largest: int) -> tuple[list[Batch], list[Outcome]]:
    """The micro-batches of a step, and what they came to; `largest` tokens on the fullest rank. Collective."""
    parts = turns.parts(largest)
    segments.go(-(-largest // parts))
    batches = split(sequences.batch(), parts)
    return batches, turns.schedule([layer.step(segments, batch, n) for n, batch in enumerate(batches)], segments.clock,
                                   segments.watch.idle, segments.watch.attend)
