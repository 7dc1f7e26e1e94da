"""One pool for several groups of ranks: who asks whom for prompts, by which messages.

The dealer is the first rank of all, beside its work in its own group. The first rank of each other group asks it,
between two steps. The dealer answers between two of its own, and where it waits in one. Of the data − 1 other groups,
which ask q times and get p prompts together:

    q ≤ p + data − 1    a request brings a prompt at least, but each group's last one, which may bring none
    to the dealer       q + 2 (data − 1) messages of 40 bytes: requests, then that all is answered, then farewell
    from the dealer     q + data − 1 messages, 8 (p + 2 (data − 1)) bytes: answers, which end once in `NONE`; `END`

so at most one request and one answer a prompt, and fewer where a step ends several answers. A job that is told to end
leaves out what was not sent yet, and has up to data − 1 messages `NOTICE` more; who says nothing for `exchange.timeout`
seconds is asked for a sign of life, and gives it, once in as many.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from mpi4py import MPI

from hpcmoe.engine.pool import Elsewhere
from hpcmoe.engine.post import Post, Pulse, receive
from hpcmoe.launch import NAP, Idle
from hpcmoe.notice import TOLD

UP, DOWN = 81, 82
"""Tags: of messages to the dealer, and from it."""
ASK, IDLE, NOTICE, BYE, ALIVE, QUERY = range(6)
"""What a group says: that it wants prompts; that all it got are answered; that it ends before; that no more comes; that
it is there; and whether the dealer is."""
NONE, END, STOP, PING, HERE = -1, -2, -3, -4, -5
"""Beside rows of prompts, what the dealer says: that there are no more; that all groups have answered theirs; that a
group was told to end; the last two as above. `END` or `STOP` is its last word to each group."""


class Source(Protocol):
    """Whence a group's first rank has its prompts. Local."""

    came: list[int]
    """rows of prompts, `NONE` and `END`, until somebody takes them"""
    told: int
    """the reason to end that another group told; else 0"""

    @property
    def elsewhere(self) -> Elsewhere:
        """See `Pool`."""
        ...

    def look(self) -> None:
        """Takes up messages that are there. Raises `DeviceError` where somebody is silent for too long."""

    def say(self, kind: int, want: int, finished: int, tokens: int, longest: float) -> None:
        """`ASK`, `IDLE` or the like, and what the group has done so far: prompts, new tokens, its longest step [s]."""

    def leave(self, stopped: bool) -> None:
        """Says the last word, and returns once nothing is under way. Waits for the first ranks of all groups."""


class Line:
    """The way to the dealer, for the first ranks of the other groups. A `Source`."""

    elsewhere = Elsewhere()

    def __init__(self, comm: Any, attend: Idle, name: str, timeout: float) -> None:
        """The dealer is rank 0 of `comm`; its `name` is for people; `attend` is called between two looks where `leave`
        waits; `timeout` in seconds."""
        self._comm, self._attend, self._post = comm, attend, Post(comm, UP)
        self.came: list[int] = []
        self.told, self._last = 0, False
        self._pulse = Pulse(name, timeout, lambda: self.say(QUERY))

    def look(self) -> None:
        """See `Source`."""
        while message := receive(self._comm, 0, DOWN):
            self._pulse.beat()
            values = message[1]
            if values == [PING]:
                self.say(ALIVE)
            elif values == [STOP]:
                self.told = TOLD
            elif values != [HERE]:
                self.came += values
            self._last |= values in ([STOP], [END])
        if not self._last:
            self._pulse.check()

    def say(self, kind: int, want: int = 0, finished: int = 0, tokens: int = 0, longest: float = 0.0) -> None:
        """See `Source`."""
        self._post.send(0, (kind, want, finished, tokens, round(longest * 1e6)))

    def leave(self, stopped: bool) -> None:
        """See `Source`."""
        if stopped and not self._last:
            self.say(NOTICE)
        _until(lambda: self._last, self.look, self._attend)
        self.say(BYE)
        _until(self._post.gone, self.look, self._attend)


@dataclass
class Heard:
    """What the dealer knows of a group."""

    pulse: Pulse
    granted: int = 0
    finished: int = 0
    tokens: int = 0
    longest: float = 0.0
    idle: bool = False
    """all that it got is answered, and it knows that there is no more"""
    told: bool = False
    """the last word has gone to it"""
    gone: bool = False
    """its own has come"""


class Dealer:
    """What no group has yet, on the first rank of all; and that rank's own group's `Source`."""

    def __init__(self, comm: Any, attend: Idle, names: Mapping[int, str], timeout: float, rows: Iterable[int]) -> None:
        """`names`: for people, of the first rank in `comm` of each group, from 0; `rows` of prompts, in the order in
        which they are dealt; the others as in `Line`."""
        self._comm, self._attend, self._post = comm, attend, Post(comm, DOWN)
        self._left = deque(rows)
        self._heard = {first: Heard(Pulse(name, timeout, partial(self._post.send, first, [PING])))
                       for first, name in names.items()}
        self.came: list[int] = []
        self.told = 0

    @property
    def elsewhere(self) -> Elsewhere:
        """See `Source`."""
        others = [heard for first, heard in self._heard.items() if first]
        return Elsewhere(len(self._left) + sum(heard.granted - heard.finished for heard in others),
                         sum(heard.tokens for heard in others), max((heard.longest for heard in others), default=0.0))

    def look(self) -> None:
        """See `Source`."""
        while message := receive(self._comm, MPI.ANY_SOURCE, UP):
            self._heard[message[0]].pulse.beat()
            self._hear(message[0], *message[1])
        for first, heard in self._heard.items():
            if first and not heard.told:
                heard.pulse.check()

    def say(self, kind: int, want: int = 0, finished: int = 0, tokens: int = 0, longest: float = 0.0) -> None:
        """See `Source`."""
        self._hear(0, kind, want, finished, tokens)

    def _hear(self, first: int, kind: int, want: int, finished: int, tokens: int, longest: int = 0) -> None:
        """`longest` in microseconds."""
        heard = self._heard[first]
        if kind in (ASK, IDLE):
            heard.finished, heard.tokens, heard.longest = finished, tokens, longest * 1e-6
        if kind == ASK and not heard.told:
            self._answer(first, want)
        elif kind == QUERY and not heard.told:
            self._reply(first, [HERE])
        heard.idle |= kind == IDLE
        heard.gone |= kind == BYE
        if kind == NOTICE:
            self._tell_all(STOP)
        elif all(other.idle for other in self._heard.values()):
            self._tell_all(END)

    def _answer(self, first: int, want: int) -> None:
        """As many as are wanted, but no more than an even part of what is left: so towards the end no group has a stock
        while others have nothing to do."""
        count = min(want, -(-len(self._left) // len(self._heard)))
        rows = [self._left.popleft() for _ in range(count)]
        self._heard[first].granted += count
        self._reply(first, rows + [NONE] * (not self._left))

    def _tell_all(self, word: int) -> None:
        for first, heard in self._heard.items():
            if not heard.told:
                heard.told = True
                self._reply(first, [word])

    def _reply(self, first: int, values: list[int]) -> None:
        if first:
            self._post.send(first, values)
        elif values == [STOP]:
            self.told = TOLD
        else:
            self.came += values

    def leave(self, stopped: bool) -> None:
        """See `Source`."""
        if stopped:
            self.say(NOTICE)
        self.say(BYE)
        _until(lambda: all(heard.gone for heard in self._heard.values()) and self._post.gone(), self.look, self._attend)


def _until(true: Callable[[], bool], look: Callable[[], None], attend: Idle) -> None:
    while not true():
        attend()
        look()
        time.sleep(NAP)
