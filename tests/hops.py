"""Layers of a made-up model whose rows travel flat or in two hops, on made-up nodes: what tests of both share."""

from collections.abc import Generator, Iterator
from dataclasses import dataclass

import numpy as np

from hpcmoe import launch
from hpcmoe.exchange.grid import Grid
from hpcmoe.exchange.interface import Flight
from hpcmoe.exchange.lane import Lane
from hpcmoe.exchange.route import plan_receive
from hpcmoe.kernels import pack
from hpcmoe.kernels.combine import combine
from hpcmoe.placement.plan import linear
from hpcmoe.slots import Placement
from hpcmoe.types import SendPlan, dense

H = 12


def grids(R: int) -> dict[str, tuple[int, ...]]:
    """The node of each rank."""
    return {"two": tuple(r * 2 // R for r in range(R)), "four": tuple(min(4, R) * r // R for r in range(R)),
            "interleaved": tuple(r % min(3, R) for r in range(R)), "uneven": tuple(int(r > R // 4) for r in range(R)),
            "ragged": launch.number([r * r % 7 % 4 for r in range(R)]), "one": (0,) * R, "alone": tuple(range(R))}


def placements(R: int) -> list[Placement]:
    """One expert a rank, some with none, some with several, and all experts on all ranks."""
    ranks, experts = np.divmod(np.arange(3 * R, dtype=np.int32), 3)
    return [linear(R, R), linear(max(1, R // 2), R), linear(2 * R + 3, R), Placement(R, ranks, experts)]


def steps(placement: Placement, K: int, seed: int) -> Iterator[list[np.ndarray]]:
    """The slots `[T, K]` of each rank, again and again: how many wanders and leaps; sometimes all go to the same."""
    rng, E, most = np.random.default_rng(seed), len(placement.copies), 2.0
    while True:
        most = min(60.0, max(0.6, most * rng.choice([0.1, 0.8, 1.0, 1.3, 8.0])))
        kind, slots = rng.choice(["some", "some", "same", "one", "none"]), []
        for r in range(placement.ranks):
            T = {"some": int(rng.integers(0, most + 1)), "same": int(most), "one": int(r == 0), "none": 0}[kind]
            expert = rng.random((T, E)).argsort(axis=1)[:, :K] if kind != "same" else np.tile(np.arange(K), (T, 1))
            slots.append(placement.slots[expert, rng.integers(0, 99, (T, K)) % placement.copies[expert]])
        yield slots


def tokens(me: int, number: int, slot: np.ndarray, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    """`[T, H]` rows, and the `[T, K]` weights of their answers."""
    rng = np.random.default_rng([me, number, *slot.shape])
    return rng.standard_normal((len(slot), H)).astype(dtype), rng.random(slot.shape, np.float32)


def expert(x: np.ndarray, slot: np.ndarray) -> np.ndarray:
    """What slots `[N]` answer to rows `[N, H]`: each row for itself, so that no order has a part in it."""
    return (x.astype(np.float32) * (1 + slot[:, None] % 7) + slot[:, None]).astype(x.dtype)


@dataclass
class Seen:
    """What a step came to on one rank."""

    rows: np.ndarray | None = None
    """that it computed, in their order, with the bytes of their trailers that count"""
    counts: np.ndarray | None = None
    y: np.ndarray | None = None
    """`[T, H]`"""


def step(lane: Lane, plan: SendPlan, x: np.ndarray, weight: np.ndarray, placement: Placement, me: int,
         seen: Seen) -> Generator[Flight, None, None]:
    """One layer; waits between its yields."""
    units, dtype, first = H * x.itemsize // 2, x.dtype, placement.first
    rows, layout = lane.dispatch.room(plan.counts, units + plan.trailer.shape[1])
    pack.pack(x, plan.token, plan.trailer, rows, layout.place)
    lane.headers.start(plan.counts, plan.home_counts, plan.behind)
    yield lane.headers
    lane.headers.wait()
    lane.dispatch.start(lane.headers.incoming, lane.headers.extent)
    yield lane.dispatch
    landing = lane.dispatch.landing
    message = pack.gather(lane.dispatch.arrived, landing.place)
    receive = plan_receive(landing.counts, message[:, units:].view(np.int16), int(first[me + 1] - first[me]))
    slot = first[me] + np.repeat(np.arange(len(receive.slot_counts)), receive.slot_counts)
    computed = pack.unpack(message, H, dtype)[receive.row]
    seen.rows, seen.counts = np.hstack([computed.view(np.uint16), slot[:, None]]), receive.home_counts
    answers, out = lane.home.room(receive.home_counts, units)
    answers.view(dtype)[out.at(receive.place)] = expert(computed, slot)
    lane.home.start(dense(plan.home_counts, me), lane.headers.extent_home)
    yield lane.home
    seen.y = combine(pack.unpack(lane.home.arrived, H, dtype), lane.home.landing.at(plan.home), weight)


def run(lane: Lane, *given) -> Seen:
    """A step without others beside it."""
    seen = Seen()
    for flight in step(lane, *given, seen):
        flight.wait()
    return seen


def sent_by(slots: list[np.ndarray], placement: Placement, found: Grid, me: int, presum: bool) -> np.ndarray:
    """`[2, 3]`: rows that rank `me` sends there and back, to itself, in its node, to others; one after another."""
    there, back = np.zeros((2, 3), int)
    for s, slot in enumerate(slots):
        for ranks in placement.rank[slot].tolist():
            for m in {int(found.node[r]) for r in ranks}:
                relay, here = int(found.relay[s, m]), [r for r in ranks if found.node[r] == m]
                there[2] += s == me != relay
                back[2] += (relay == me != s) * (1 if presum else len(here))
                for r in set(here):
                    there[int(r != me)] += relay == me
                for r in here:
                    back[int(relay != me)] += r == me
    return np.array([there, back])
