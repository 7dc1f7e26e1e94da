"""The step loop: deal prompts, run a step, take up its tokens, until the pool is empty everywhere."""

import time
from collections.abc import Sequence as ListOf

import numpy as np

from hpcmoe.engine import layer
from hpcmoe.engine.batch import Sequences, deal, split
from hpcmoe.engine.device import RankSegments
from hpcmoe.engine.progress import Progress
from hpcmoe.engine.record import Record
from hpcmoe.engine.ways import Turns
from hpcmoe.exchange.interface import until
from hpcmoe.exchange.watch import Unwatched, Watch
from hpcmoe.files.prompts import Prompts
from hpcmoe.types import StepTime


class Vote:
    """What every rank says of itself between two steps. Collective over `comm`."""

    def __init__(self, comm, watch: Watch | Unwatched) -> None:
        self._comm, self._watch = comm.Dup(), watch
        self._all = np.zeros((comm.size, 5), np.int64)

    def __call__(self, free: int, active: int, ahead: int, finished: int, tokens: int) -> np.ndarray:
        """`[R, 5]` int64: each rank's free and taken slots, tokens ahead, and answers and new tokens so far."""
        self._watch.mark("vote")
        request = self._comm.Iallgather(np.array([free, active, ahead, finished, tokens], np.int64), self._all)
        until(request.Test, self._watch.idle)
        return self._all

    def free(self) -> None:
        """Collective."""
        self._comm.Free()


def generate(vote: Vote, rank: int, prompts: Prompts, pool: ListOf[int], sequences: Sequences,
             segments: RankSegments, turns: Turns, record: Record, progress: Progress) -> None:
    """Answers the prompts in `pool` (rows of `prompts`), the same on all ranks, in steps that are cut as `turns` says.

    Collective. A rank without sequences takes part in every step: its experts serve the others.
    """
    clock = segments.clock
    step = finished = tokens = 0
    while True:
        begin, clock.trace.step = time.perf_counter(), step
        with clock.voting():
            state = vote(sequences.free, sequences.active, sequences.ahead, finished, tokens)
        progress.update(int(state[:, 3].sum()), int(state[:, 4].sum()))
        ranks = deal(state[:, 0], len(pool))
        if not ranks and not state[:, 1].any():
            return
        clock.trace.push("step")
        ahead = state[:, 2].copy()
        for prompt, taker in zip(pool, ranks):
            ahead[taker] += prompts.lengths[prompt]
            if taker == rank:
                sequences.admit(prompt, prompts[prompt])
        pool = pool[len(ranks):]
        batches = split(sequences.batch(), turns.parts(min(int(ahead.max()), sequences.max_tokens)))
        outcomes = turns.schedule([layer.step(segments, batch, n) for n, batch in enumerate(batches)], clock,
                              segments.watch.idle, segments.watch.attend)
        answers = [a for pair in zip(batches, outcomes) for a in sequences.advance(*pair)]
        rows, chosen = sum(batch.rows for batch in batches), sum(len(outcome.token) for outcome in outcomes)
        finished, tokens = finished + len(answers), tokens + chosen
        traffic, end = clock.read_traffic(), time.perf_counter()
        clock.trace.pop("step", "step", begin, end, rows=rows)
        record.add(answers, np.sum([outcome.load for outcome in outcomes], axis=0), traffic,
                   StepTime(step, rows, chosen, end - begin, clock.read(), traffic.total()))
        step += 1
