"""What a micro-batch on a CPU has in hand; on a GPU: `engine.room`."""

from dataclasses import dataclass, field

import numpy as np

from hpcmoe.engine.stream import Event
from hpcmoe.engine.together import Together
from hpcmoe.engine.trip import Trip
from hpcmoe.exchange.lane import Lane
from hpcmoe.types import Batch, Layout, Outcome, Route, SendPlan


@dataclass
class Work:
    """The handle of a micro-batch: what its next segment needs."""

    batch: Batch
    number: int
    """of the micro-batch in its step"""
    lane: Lane
    load: np.ndarray
    """`[L, E]` int64: rows sent to each expert so far"""
    computed: np.ndarray
    """`[L]` int64: rows that this rank's experts computed so far"""
    moved: np.ndarray
    """`[L]` int64: (token, k) that a bias has sent elsewhere so far"""
    tokens: np.ndarray
    """`[s]` int64: those that are sampled, and"""
    sample: list[np.ndarray] = field(default_factory=list)
    """by layer with experts: `[s, K]` int16, theirs"""
    layer: int = 0
    angles: tuple[np.ndarray, np.ndarray] = field(init=False)
    x: np.ndarray = field(init=False)
    """`[T, H]`: the residual stream"""
    normed: np.ndarray = field(init=False)
    """`[T, H]`: what the gate saw"""
    shared: np.ndarray | None = None
    """`[T, H]`: the shared expert's answer"""
    shared_ready: Event = field(default_factory=Event)
    route: Route = field(init=False)
    send: SendPlan = field(init=False)
    leaving: int = 0
    """rows that are ready to leave"""
    sent: np.ndarray = field(init=False)
    """`[len(CLASSES)]` int64: their bytes"""
    homecoming: Layout = field(init=False)
    """of the answers to come, without gaps"""
    trip: Trip = field(init=False)
    """of the rows that leave for the experts"""
    together: Together | None = None
    """what its team needs, where attention is split"""
    outcome: Outcome = field(init=False)
