"""How far the clocks of the ranks are apart: nodes count seconds from different beginnings, and not equally fast."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from hpcmoe.exchange.interface import until
from hpcmoe.launch import Idle

ROUNDS = 20
TAG = 77


@dataclass(frozen=True)
class Offset:
    """How far a rank's clock is ahead of rank 0's."""

    at: float
    """when this was measured, on this rank's clock [s]"""
    ahead: float
    """[s]"""
    within: float
    """the truth is at most so far away [s]"""


def measure(comm, idle: Idle, now: Callable[[], float] = time.perf_counter) -> Offset:
    """Of this rank: from the quickest of `ROUNDS` messages to it and back. Collective; ranks take turns."""
    if comm.rank:
        return _answer(comm, idle, now)
    for rank in range(1, comm.size):
        tries = [_ask(comm, rank, idle, now) for _ in range(ROUNDS)]
        within, ahead = min(tries)
        # ranks of a node have one clock: what cannot be told from nothing is nothing
        comm.Send(np.array([0.0 if abs(ahead) <= within else ahead, within]), rank, TAG)
    return Offset(now(), 0.0, 0.0)


def _ask(comm, rank: int, idle: Idle, now: Callable[[], float]) -> tuple[float, float]:
    """Half the time of one message and its answer, and how far the rank's clock is ahead."""
    theirs, begin = np.zeros(1), now()
    comm.Send(theirs, rank, TAG)
    until(comm.Irecv(theirs, rank, TAG).Test, idle)
    half = (now() - begin) / 2
    return half, float(theirs[0]) - begin - half


def _answer(comm, idle: Idle, now: Callable[[], float]) -> Offset:
    message, result = np.zeros(1), np.zeros(2)
    for _ in range(ROUNDS):
        until(comm.Irecv(message, 0, TAG).Test, idle)
        message[0] = now()
        comm.Send(message, 0, TAG)
    until(comm.Irecv(result, 0, TAG).Test, idle)
    return Offset(now(), float(result[0]), float(result[1]))


def aligned(times: np.ndarray, first: Offset, last: Offset) -> np.ndarray:
    """Times of this rank's clock `[n]` float64 on rank 0's; between the two measurements the offset is a line."""
    span = last.at - first.at
    slope = (last.ahead - first.ahead) / span if span > 0 else 0.0
    return times - first.ahead - (times - first.at) * slope
