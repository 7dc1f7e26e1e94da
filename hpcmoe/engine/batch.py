"""The sequences of one rank, and the micro-batches that are cut from them."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise
from math import nan

import numpy as np

from hpcmoe.config import Job
from hpcmoe.kernels.attention import SHORT
from hpcmoe.spec import ModelSpec
from hpcmoe.types import Answer, Batch, Begun, Outcome, Span


@dataclass
class Sequence:
    """A prompt and what has been added to it."""

    prompt: int
    tokens: list[int]
    """the prompt's, then the new ones"""
    prompt_length: int
    cached: int = 0
    """how many of them the cache holds"""
    logprobs: list[float] = field(default_factory=list)
    since: float = 0.0
    """when it got its slot"""
    first: float = nan
    """see `Answer`"""

    @property
    def ahead(self) -> int:
        """Tokens that the model has not seen yet: the prompt's at first, and new ones of an earlier run; then one."""
        return len(self.tokens) - self.cached

    @property
    def next(self) -> int:
        """How many of them the next step may take: the prompt's; then new ones as few as attention decodes one by one,
        so that those of an earlier run are computed as they were there."""
        return self.prompt_length - self.cached if self.cached < self.prompt_length else min(self.ahead, SHORT)


class Sequences:
    """A rank's slots. A finished sequence leaves its slot, and another prompt takes it at the next step.

    State changes in `admit` and `advance` only, so a step that fails in between can be run again.
    """

    def __init__(self, model: ModelSpec, job: Job, slots: int, max_tokens: int,
                 now: Callable[[], float] = time.perf_counter) -> None:
        """`now` tells the time, in seconds."""
        self.max_tokens, self._now = max_tokens, now
        self._rules, self._context, self._scoring = job.generate, model.context, job.mode == "score"
        self._ends = {*job.generate.stop_tokens, *(() if job.generate.ignore_eos else model.eos)}
        self._slots: list[Sequence | None] = [None] * slots

    @property
    def free(self) -> int:
        """Slots without a sequence."""
        return self._slots.count(None)

    @property
    def active(self) -> int:
        """Slots with one."""
        return len(self._slots) - self.free

    @property
    def prompts(self) -> list[int]:
        """What is in them: rows of the prompts."""
        return [s.prompt for s in self._slots if s]

    @property
    def ahead(self) -> int:
        """Tokens that the next step may take, of all sequences."""
        return sum(s.next for s in self._slots if s)

    def admit(self, prompt: int, tokens: np.ndarray, begun: Begun | None = None) -> None:
        """Puts a prompt, `[n]` int32, into a free slot, with what is there of its answer."""
        more, logprobs = (begun.tokens.tolist(), begun.logprobs.tolist()) if begun else ([], [])
        first = [float("nan")] if self._scoring else logprobs
        self._slots[self._slots.index(None)] = Sequence(prompt, tokens.tolist() + more, len(tokens), logprobs=first,
                                                        since=self._now(), first=begun.first if begun else nan)

    def begun(self) -> tuple[Begun, ...]:
        """The answers that have begun. Scores have not, before they are done: there is nothing to go on from."""
        return tuple(Begun(s.prompt, np.array(s.tokens[s.prompt_length:], np.int32), np.array(s.logprobs, np.float32),
                           s.first)
                     for s in self._slots if s and len(s.tokens) > s.prompt_length)

    def _in_turn(self) -> Iterator[tuple[int, Sequence]]:
        """Slots in the order in which they get tokens of a step: those that wait for one token first."""
        taken = [(slot, s) for slot, s in enumerate(self._slots) if s]
        return iter(sorted(taken, key=lambda pair: pair[1].ahead > 1))

    def batch(self) -> Batch:
        """The next tokens of every sequence, `max_tokens` at most; a long prompt takes several steps."""
        token: list[int] = []
        position: list[int] = []
        asked: list[tuple[int, int, int]] = []
        spans = []
        for slot, s in self._in_turn():
            rows = min(s.next, self.max_tokens - len(token))
            if not rows:
                break
            span = Span(slot, len(token), rows, s.cached)
            spans.append(span)
            token += s.tokens[s.cached:s.cached + rows]
            position += range(s.cached, s.cached + rows)
            asked += self._asked(s, span)
        wanted, prompt, target = np.array(asked, np.int64).reshape(-1, 3).T
        return Batch(np.array(token, np.int32), np.array(position, np.int32), tuple(spans), wanted.astype(np.int32),
                     prompt, target.astype(np.int32))

    def _asked(self, s: Sequence, span: Span) -> list[tuple[int, int, int]]:
        """(row, prompt, target) of the rows of a span whose logits are wanted: of the last, or of all but the last."""
        if not self._scoring:
            return [(span.first + span.rows - 1, s.prompt, -1)] if span.rows == s.ahead else []
        known = s.tokens[s.cached + 1:s.cached + span.rows + 1]
        return [(span.first + row, s.prompt, target) for row, target in enumerate(known)]

    def advance(self, batch: Batch, outcome: Outcome) -> list[Answer]:
        """Takes up what a step came to; returns the answers that it finished."""
        chosen = dict(zip(batch.wanted.tolist(), zip(outcome.token.tolist(), outcome.logprob.tolist())))
        finished, now = [], self._now()
        for span in batch.spans:
            s = self._slots[span.slot]
            assert s is not None
            s.cached += span.rows
            for row in range(span.first, span.first + span.rows):
                if row in chosen:
                    s.logprobs.append(chosen[row][1])
                    if not self._scoring:
                        if len(s.tokens) == s.prompt_length:
                            s.first = now - s.since
                        s.tokens.append(chosen[row][0])
            if stop := self._stop(s):
                tokens = s.tokens[0 if self._scoring else s.prompt_length:]
                finished.append(Answer(s.prompt, np.array(tokens, np.int32), np.array(s.logprobs, np.float32), stop,
                                       s.first))
                self._slots[span.slot] = None
        return finished

    def _stop(self, s: Sequence) -> str:
        if self._scoring:
            return "" if s.ahead else "scored"
        if len(s.tokens) == s.prompt_length:
            return ""
        if s.tokens[-1] in self._ends:
            return "eos"
        if len(s.logprobs) == self._rules.max_new_tokens:
            return "length"
        return "context" if len(s.tokens) == self._context else ""


def split(batch: Batch, parts: int) -> list[Batch]:
    """`parts` micro-batches of whole spans, with rows as even as their order allows; some may be empty."""
    ends = np.array([span.first + span.rows for span in batch.spans], np.int64)
    limits = [batch.rows * part // parts for part in range(parts + 1)]
    cuts = [int(np.searchsorted(ends, limit, side="right" if limit else "left")) for limit in limits]
    return [_part(batch, batch.spans[first:last]) for first, last in pairwise(cuts)]


def _part(batch: Batch, spans: tuple[Span, ...]) -> Batch:
    """The rows of some neighbouring spans."""
    first = spans[0].first if spans else 0
    last = spans[-1].first + spans[-1].rows if spans else 0
    asked = (batch.wanted >= first) & (batch.wanted < last)
    return Batch(batch.token[first:last], batch.position[first:last],
                 tuple(replace(span, first=span.first - first) for span in spans),
                 batch.wanted[asked] - np.int32(first), batch.prompt[asked], batch.target[asked])


def deal(free: np.ndarray, waiting: int) -> list[int]:
    """Which rank gets each of the next prompts: the one with the most free slots, the lowest at a tie.

    free `[R]` int64; `waiting` prompts are left in the pool. All ranks come to the same answer.
    """
    left, ranks = free.copy(), []
    for _ in range(min(waiting, int(free.sum()))):
        rank = int(left.argmax())
        left[rank] -= 1
        ranks.append(rank)
    return ranks
