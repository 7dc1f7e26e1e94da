"""The pool of one of several groups of ranks, which is filled up as the group needs prompts."""

import time
from collections.abc import Iterable

from hpcmoe.engine.dealer import ASK, END, IDLE, NONE, Source
from hpcmoe.engine.pool import Elsewhere, Pool, Share
from hpcmoe.files.prompts import Prompts
from hpcmoe.types import Begun

SHARE, SHORTEST, LONGEST = 0.2, 1e-3, 5e-2
"""A nap of those that have nothing to do: in parts of the time for which they have had nothing; and in seconds, at
least and at most."""

EVERY = 5e-3
"""Seconds between two looks at messages, at least, where a rank waits in a step."""


class Stock(Pool):
    """A `Pool` that is the same on all ranks of the group. Its first rank has a request for more under way before the
    group needs them.

    What came is known to all behind the next vote, by one broadcast. A group without work keeps voting until all
    groups have answered theirs: so any of its ranks that has notice to end is heard.
    """

    def __init__(self, prompts: Prompts, begun: Iterable[Begun], source: Source | None) -> None:
        """`begun` are for any prompts of the job; only the group's first rank has a source."""
        super().__init__(prompts, (), begun)
        self.ended, self._source = False, source
        self._taken = 0
        self._more = True
        """whether the dealer has not said that there are no more"""
        self._asked: int | None = None
        """where a request is under way: prompts that the group had answered when it left"""
        self._answered = False
        """whether an answer has come since the last deal"""
        self._said_idle = False
        self._news = 0
        self._looked = 0.0
        self._reserve = 1
        """prompts that the stock should have: as many as the group answered while the last request was under way; twice
        as many as before where it ran dry, and else not much less than before, since a step now and then is long"""
        self._dry = False
        self._idle_since = 0.0

    @property
    def news(self) -> int:  # type: ignore[override]
        """See `Pool`."""
        return self._news

    @property
    def told(self) -> int:  # type: ignore[override]
        """See `Pool`."""
        return self._source.told if self._source else 0

    @property
    def elsewhere(self) -> Elsewhere:  # type: ignore[override]
        """See `Pool`."""
        return self._source.elsewhere if self._source else Elsewhere()

    def take(self, count: int) -> list:
        """See `Pool`."""
        self._taken += count
        self._idle_since = 0.0 if count else self._idle_since
        return super().take(count)

    def look(self) -> None:
        """See `Pool`."""
        if self._source:
            self._source.look()
            self._news = len(self._source.came)

    def attend(self) -> None:
        """See `Pool`."""
        now = time.monotonic()
        if self._source and now - self._looked > EVERY:
            self._looked = now
            self._source.look()

    def hear(self, news: int, share: Share) -> None:
        """See `Pool`."""
        if not news:
            return
        came = share(self._source.came[:news] if self._source else (), news).tolist()
        if self._source:
            del self._source.came[:news]  # more may have come since the vote
        self._waiting.extend(number for number in came if number >= 0)
        self._answered |= came != [END]
        self._more &= NONE not in came
        self.ended |= END in came

    def want(self, free: int, active: int, tokens: int, longest: float) -> None:
        """See `Pool`."""
        if not self._source:
            return
        finished = self._taken - active
        if self._answered and self._asked is not None:
            self._reserve = max(1, finished - self._asked, 2 * self._reserve if self._dry else 3 * self._reserve // 4)
            self._asked, self._dry = None, False
        self._answered = False
        if self._asked is not None:
            self._dry |= free > 0
            return
        missing = free + self._reserve - len(self)
        if self._more and missing > 0:
            self._asked = finished
            self._source.say(ASK, missing, finished, tokens, longest)
        elif not self._more and not len(self) and not active and not self._said_idle:
            self._said_idle = True
            self._source.say(IDLE, 0, finished, tokens, longest)

    def nap(self) -> None:
        """See `Pool`."""
        now = time.monotonic()
        if self._idle_since == 0:
            self._idle_since = now
        time.sleep(min(LONGEST, max(SHORTEST, SHARE * (now - self._idle_since))))

    def leave(self, stopped: bool) -> None:
        """See `Pool`."""
        if self._source:
            self._source.leave(stopped)
