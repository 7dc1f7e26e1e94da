"""The sequences of one rank, and the micro-batches that are cut from them."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from hpcmoe.config import Generate
from hpcmoe.spec import ModelSpec
from hpcmoe.types import Answer, Batch, Outcome, Span


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

    @property
    def ahead(self) -> int:
        """Tokens that the model has not seen yet: the prompt's at first, then one."""
        return len(self.tokens) - self.cached

    @property
    def new(self) -> list[int]:
        return self.tokens[self.prompt_length:]


class Sequences:
    """A rank's slots. A finished sequence leaves its slot, and another prompt takes it at the next step.

    State changes in `admit` and `advance` only, so a step that fails in between can be run again.
    """

    def __init__(self, model: ModelSpec, rules: Generate, slots: int, max_tokens: int) -> None:
        self.model, self.rules, self.max_tokens = model, rules, max_tokens
        self._slots: list[Sequence | None] = [None] * slots

    @property
    def free(self) -> int:
        """Slots without a sequence."""
        return self._slots.count(None)

    @property
    def active(self) -> int:
        """Slots with one."""
        return len(self._slots) - self.free

    def admit(self, prompt: int, tokens: np.ndarray) -> None:
        """Puts a prompt, `[n]` int32, into a free slot."""
        self._slots[self._slots.index(None)] = Sequence(prompt, [int(t) for t in tokens], len(tokens))

    def _in_turn(self) -> Iterator[tuple[int, Sequence]]:
        """Slots in the order in which they get tokens of a step: those that wait for one token first."""
        taken = [(slot, s) for slot, s in enumerate(self._slots) if s]
        return iter(sorted(taken, key=lambda pair: pair[1].ahead > 1))

    def batch(self) -> Batch:
        """The next tokens of every sequence, `max_tokens` at most; a long prompt takes several steps."""
        token: list[int] = []
        position: list[int] = []
        spans, wanted = [], []
        for slot, s in self._in_turn():
            rows = min(s.ahead, self.max_tokens - len(token))
            if not rows:
                break
            spans.append(Span(slot, len(token), rows, s.cached))
            token += s.tokens[s.cached:s.cached + rows]
            position += range(s.cached, s.cached + rows)
            if rows == s.ahead:
                wanted.append(len(token) - 1)
        return Batch(np.array(token, np.int32), np.array(position, np.int32), tuple(spans), np.array(wanted, np.int32))

    def advance(self, batch: Batch, outcome: Outcome) -> list[Answer]:
        """Takes up what a step came to; returns the answers that it finished."""
        chosen = dict(zip(batch.wanted.tolist(), zip(outcome.token.tolist(), outcome.logprob.tolist())))
        finished = []
        for span in batch.spans:
            s = self._slots[span.slot]
            assert s is not None
            s.cached += span.rows
            last = span.first + span.rows - 1
            if last in chosen:
                token, logprob = chosen[last]
                s.tokens.append(token)
                s.logprobs.append(logprob)
                if stop := self._stop(s):
                    finished.append(Answer(s.prompt, np.array(s.new, np.int32), np.array(s.logprobs, np.float32), stop))
                    self._slots[span.slot] = None
        return finished

    def _stop(self, s: Sequence) -> str:
        if s.tokens[-1] in self.model.eos and not self.rules.ignore_eos:
            return "eos"
        if len(s.logprobs) == self.rules.max_new_tokens:
            return "length"
        return "context" if len(s.tokens) == self.model.context else ""


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
