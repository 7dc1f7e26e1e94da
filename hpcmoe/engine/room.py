"""What a micro-batch on a GPU has in hand: its buffers, and what its next segment needs."""

from dataclasses import dataclass, field, replace

import cupy
import numpy as np

from hpcmoe.device.cuda import Event, Mirror
from hpcmoe.device.gate import Route, make_route
from hpcmoe.engine.attends import Place, Tokens
from hpcmoe.engine.together import Together
from hpcmoe.engine.trip import Trip
from hpcmoe.exchange.interface import Flight
from hpcmoe.exchange.lane import Lane
from hpcmoe.slots import Placements
from hpcmoe.spec import ModelSpec
from hpcmoe.types import SAMPLED, Batch, Layout, SendPlan


class Room:
    """What a micro-batch needs on the device, whichever step it is in."""

    def __init__(self, model: ModelSpec, tokens: int, placements: Placements) -> None:
        K, ranks, shards = model.moe.top_k if model.moe else 1, placements[0].ranks, placements[0].shards
        replicated = any(placement.replicated for placement in placements)
        self.x, self.normed = (cupy.empty((tokens, model.hidden), np.uint16) for _ in range(2))
        self.route: Route = make_route(tokens, K, ranks, shards)
        self.chosen = replace(make_route(tokens, K, model.experts), weight=self.route.weight) if replicated else None
        self.load = cupy.zeros((model.layers, model.experts + 1), np.uint64)
        """rows for each expert, then (token, k) that a bias moved"""
        self.sample = cupy.full((SAMPLED, model.layers, model.moe.top_k if model.moe else 0), -1, np.int16)
        self.shares = Mirror(np.int32)
        self.zero = cupy.zeros(ranks, np.int32)
        self.laid = cupy.zeros(ranks, np.int32)
        self.out_base, self.home_base = (Mirror(np.int32, ranks) for _ in range(2))
        # those that graphs read never move
        self.token, self.place = Mirror(np.int32, tokens), Place(tokens)
        self.wanted, self.target = (Mirror(np.int32) for _ in range(2))
        self.source, self.target_row = Mirror(np.int32), Mirror(np.int32)
        self.u = Mirror(np.float64)


@dataclass
class Work:
    """The handle of a micro-batch: what its next segment needs."""

    batch: Batch
    number: int
    """of the micro-batch in its step"""
    lane: Lane
    room: Room
    computed: np.ndarray
    """`[L]` int64: rows that this rank's experts computed so far"""
    layer: int = 0
    x: cupy.ndarray = field(init=False)
    """`[T, H]` uint16: the residual stream"""
    seen: Tokens = field(init=False)
    together: Together | None = None
    """what its team needs, where attention is split"""
    attends: bool = False
    """whether a team's attention comes next"""
    shared: cupy.ndarray | None = None
    """`[T, H]` uint16: the shared expert's answer"""
    homecoming: Layout = field(init=False)
    told: tuple[np.ndarray, np.ndarray] = field(init=False)
    """in two hops: slots or experts `[T, K]` int32 and weights `[T, K]` float32 on the host,"""
    send: SendPlan = field(init=False)
    """and what follows from them"""
    packed: bool = False
    """the rows that leave are where they leave from"""
    leaving: int = 0
    sent: np.ndarray = field(init=False)
    trip: Trip = field(init=False)
    own: Event = field(init=False)
    """the rank's own rows are where those from others arrive"""
    results: tuple[np.ndarray, ...] = ()


class Counts:
    """Counts on their way, while the rows are packed. A `Flight`."""

    stage = "exchange"

    def __init__(self, headers: Flight, packed: Event) -> None:
        self._headers, self._packed = headers, packed

    def test(self) -> bool:
        """See `Flight`."""
        return self._headers.test() and self._packed.test()

    def wait(self) -> None:
        """See `Flight`."""
        self._headers.wait()
        self._packed.wait()
