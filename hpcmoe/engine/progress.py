"""How far a run is, on stderr: a bar on a terminal, a line every ten seconds in a log."""

import sys
import time
from dataclasses import dataclass
from typing import Protocol

import numpy as np

LINE, BAR = 10.0, 1.0
"""Seconds between two lines in a log, and between two looks of a bar, at least."""


@dataclass(frozen=True)
class So:
    """How far all ranks are."""

    finished: int
    """prompts"""
    active: int
    """prompts that are under way"""
    tokens: np.ndarray
    """`[n]` int64: new tokens so far, of each rank, and of other groups of ranks"""
    computed: np.ndarray
    """`[R]` int64: rows that experts computed so far"""
    exchange: np.ndarray
    """`[R, 2]` int64: µs of exchanges so far, and those of them that were exposed"""


class Progress(Protocol):
    def due(self) -> bool:
        """Whether it is time for `update`: asked before each step, so it must cost next to nothing."""

    def update(self, so: So) -> None:
        """Takes up how far the run is, when that is due and at its end; what comes first is where it begins."""

    def close(self) -> None:
        """Nothing more comes."""


class Silence:
    """The progress of every rank but 0."""

    def due(self) -> bool:
        """See `Progress`."""
        return False

    def update(self, so: So) -> None:
        """See `Progress`."""

    def close(self) -> None:
        """See `Progress`."""


class Pace:
    """What to say of a run beside how many prompts are finished."""

    def __init__(self, prompts: int, most: int) -> None:
        """`prompts` with `most` new tokens together, at most."""
        self._prompts, self._most, self._begin = prompts, most, 0.0
        self._first: So | None = None
        self._last: So | None = None

    def words(self, so: So) -> list[str]:
        """Tokens/s since the first call, which says nothing, and time left; since the last call, how uneven the ranks'
        rows were (fullest rank over the mean), and what part of the exchange was hidden."""
        if self._first is None or self._last is None:
            self._begin, self._first, self._last = time.monotonic(), so, so
            return []
        passed = max(time.monotonic() - self._begin, 1e-9)
        rate = int(so.tokens.sum() - self._first.tokens.sum()) / passed
        found = [f"{rate:.1f} tokens/s", *self._left(so, self._first, rate, passed)]
        computed, exchange = so.computed - self._last.computed, (so.exchange - self._last.exchange).sum(axis=0)
        if len(computed) > 1 and computed.any():
            found.append(f"imbalance {computed.max() / computed.mean():.2f}")
        if exchange[0] > 0:
            found.append(f"exchange {100 * max(0.0, 1 - exchange[1] / exchange[0]):.0f} % hidden")
        self._last = so
        return found

    def _left(self, so: So, first: So, rate: float, passed: float) -> list[str]:
        """By the prompts that are done, where those under way count half; before one is, by the tokens to come at
        most."""
        if so.finished >= self._prompts or rate <= 0:
            return []
        bound = max(0, self._most - int(so.tokens.sum())) / rate
        done = so.finished + so.active / 2
        if so.finished > first.finished and done > first.finished:
            guess = passed * (self._prompts - done) / (done - first.finished)
            return [f"{_span(min(guess, bound))} left"]
        return [f"{_span(bound)} left at most"]


def _span(seconds: float) -> str:
    """Time as people say it: 45 s, 12 min, 3.5 h."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5970 else f"{seconds / 3600:.1f} h"


class Lines:
    """For logs."""

    def __init__(self, prompts: int, most: int) -> None:
        self._prompts, self._pace, self._next = prompts, Pace(prompts, most), 0.0

    def due(self) -> bool:
        """See `Progress`."""
        return time.monotonic() >= self._next

    def update(self, so: So) -> None:
        """See `Progress`."""
        if not self.due():  # the end of a short run needs no line
            return
        self._next = time.monotonic() + LINE
        if words := self._pace.words(so):
            print(", ".join([f"hpcmoe: {so.finished} of {self._prompts} prompts", f"{int(so.tokens.sum())} tokens",
                             *words]), file=sys.stderr, flush=True)

    def close(self) -> None:
        """See `Progress`."""


class Bar:
    """For terminals."""

    def __init__(self, prompts: int, most: int) -> None:
        from tqdm import tqdm
        self._bar = tqdm(total=prompts, file=sys.stderr, mininterval=0, miniters=1, dynamic_ncols=True,
                         bar_format="{percentage:3.0f}%|{bar:20}| {n_fmt}/{total_fmt} prompts, {elapsed}{postfix}")
        self._pace, self._next = Pace(prompts, most), 0.0

    def due(self) -> bool:
        """See `Progress`."""
        return time.monotonic() >= self._next

    def update(self, so: So) -> None:
        """See `Progress`."""
        self._next = time.monotonic() + BAR
        self._bar.n = so.finished
        self._bar.set_postfix_str(", ".join(self._pace.words(so)))

    def close(self) -> None:
        """See `Progress`."""
        self._bar.close()


def open_progress(rank: int, prompts: int, most: int) -> Progress:
    """The progress of `prompts` prompts with `most` new tokens together at most, as fits this rank and its stderr."""
    if rank:
        return Silence()
    return Bar(prompts, most) if sys.stderr.isatty() else Lines(prompts, most)
