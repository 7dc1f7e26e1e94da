"""Links as resources: what each is busy with, and when what is sent has come."""

import numpy as np

from hpcmoe.predict.flow import Move, Pair
from hpcmoe.predict.machine import Links

CLOSE = 1e-6
"""Sums of bytes that differ by this part are the same."""


class Defect(RuntimeError):
    """A simulation that cannot be: a defect of the program, as its traceback and exit code 70 say."""


class Network:
    """A link of each rank inside its node, and one out of it; both directions of each carry one exchange after another.

    Ranks are classes `[C]`: what is said of one holds for each of its ranks.
    """

    def __init__(self, links: Links, of: np.ndarray, same_node: np.ndarray) -> None:
        """of `[C]`: ranks of each class; same_node `[C, C]` bool: between whom near links carry rows."""
        self._rates = links.near_rate, links.far_rate
        self._latencies = links.near_latency, links.far_latency
        self._start, self._of, self._near = links.start, of, same_node
        self._free_out, self._free_in = np.zeros((2, len(of))), np.zeros((2, len(of)))
        self.busy_out, self.busy_in = np.zeros((2, len(of))), np.zeros((2, len(of)))
        """`[2, C]` seconds that links were busy"""
        self.moved = np.zeros(2)
        """bytes of all ranks, near and far"""

    def move(self, ready: np.ndarray, move: Move, far_too: bool = True) -> np.ndarray:
        """`[C]` seconds: when each has all that it gets, and all that it sends has left; ready `[C]`: when each starts.

        What leaves one takes max(bytes / rate, messages); it is there once it has left all sources and a latency has
        passed, and not before the receiver's link has had time for it.
        """
        end = ready + self._start
        posted = move.seconds * move.messages
        for kind in range(2 if far_too else 1):
            out, come = move.out[kind], move.come[kind]
            self._conserve(out, come, kind)
            if not out.any():
                continue
            span = np.maximum(out / self._rates[kind], np.where(out > 0, posted, 0))
            begin = np.maximum(ready + self._start, self._free_out[kind])
            left = begin + span
            self._free_out[kind] = np.where(out > 0, left, self._free_out[kind])
            end = np.maximum(end, np.where(out > 0, left, 0))
            first, last = self._sources(begin, left, out, kind)
            takes = come / self._rates[kind]
            there = np.maximum(np.maximum(first, self._free_in[kind]) + takes, last)
            self._free_in[kind] = np.where(come > 0, there, self._free_in[kind])
            end = np.maximum(end, np.where(come > 0, there, 0))
            self.busy_out[kind] += out / self._rates[kind]
            self.busy_in[kind] += takes
        return end

    def among(self, members: np.ndarray, ready: np.ndarray, each: float, near: bool) -> float:
        """When the members `[m]` of a team, which start at ready `[m]`, have `each` bytes of all others together."""
        kind = 0 if near else 1
        span = each / self._rates[kind]
        begin = np.maximum(ready + self._start, np.maximum(self._free_out[kind], self._free_in[kind])[members])
        end = float((begin + span).max()) + self._latencies[kind]
        self._free_out[kind][members] = begin + span
        self._free_in[kind][members] = end
        self.busy_out[kind][members] += span
        self.busy_in[kind][members] += span
        self.moved[kind] += each * float(self._of[members].sum())
        return end

    def _sources(self, begin: np.ndarray, left: np.ndarray, out: np.ndarray, kind: int) -> Pair:
        """`[C]` each: when the first byte of any source is there, and the last of all."""
        who = (self._near if kind == 0 else np.ones_like(self._near)) & (out > 0)[None]
        first = np.where(who, begin[None], np.inf).min(axis=1)
        last = np.where(who, left[None], 0).max(axis=1)
        return np.where(np.isfinite(first), first, 0) + self._latencies[kind], last + self._latencies[kind]

    def _conserve(self, out: np.ndarray, come: np.ndarray, kind: int) -> None:
        """Raises `Defect` where other bytes come than are sent."""
        sent, got = float((self._of * out).sum()), float((self._of * come).sum())
        if abs(sent - got) > CLOSE * max(sent, got, 1.0):
            raise Defect(f"{sent:.0f} bytes were sent, and {got:.0f} came")
        self.moved[kind] += sent

    def check(self, wall: float) -> None:
        """Raises `Defect` where a link was busy for longer than `wall` seconds."""
        for busy in (self.busy_out, self.busy_in):
            if busy.max(initial=0) > wall * (1 + CLOSE):
                raise Defect(f"a link was busy for {busy.max():.6f} s of {wall:.6f} s")
