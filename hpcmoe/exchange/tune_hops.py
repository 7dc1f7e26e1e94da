"""What two hops cost here beside one, as measured between all ranks: by which `exchange.mode = "auto"` takes them."""

from collections.abc import Callable

import numpy as np

from hpcmoe import array
from hpcmoe.exchange import tune
from hpcmoe.exchange.lane import Lane, Way, open_lanes
from hpcmoe.exchange.relayed import Relayed
from hpcmoe.exchange.route import plan_receive, plan_send, trailer_width
from hpcmoe.exchange.route_far import plan_send_far
from hpcmoe.exchange.twohop import open_twohop
from hpcmoe.launch import Idle
from hpcmoe.slots import Placement
from hpcmoe.types import Hops, SendPlan, dense


def measure(comm, idle: Idle, units: int, way: Way, by: Relayed, placement: Placement, most: int,
            rounds: int = tune.ROUNDS, home: int = 0) -> Hops:
    """Counts, dispatch and return of 1, 4, 16, … tokens on each rank, `most` at most, by uniform random routing.

    Rows are of `units` uint16, on their way home of `home`, where those are others. Collective; equal on all ranks.
    """
    rows = [4 ** power for power in range(most.bit_length()) if 4 ** power <= most]
    flat, = open_lanes(comm, idle, way, 1)
    twohop, = open_twohop(comm, idle, way, by, 1)
    seconds = []
    for tokens in rows:
        contest = contestants(comm, flat, twohop, units, by, placement, tokens, home)
        seconds.append(tune.medians(comm, idle, contest, rounds))
    flat.free()
    twohop.free()
    return Hops(np.array(rows), *(np.array([s[name] for s in seconds]) for name in ("flat", "twohop")))


def contestants(comm, flat: Lane, twohop: Lane, units: int, by: Relayed, placement: Placement,
                tokens: int, home: int = 0) -> dict[str, Callable[[], None]]:
    """Both for so many tokens on each rank, to be run again and again; they have been run already. Collective."""
    me, K = comm.rank, by.top_k // placement.shards
    slot = uniform(placement, tokens, K, me)
    weight = np.full(slot.shape, 1 / K, np.float32) if by.presum else None
    sizes, width = (units, home or units), trailer_width(placement.most, K)
    return {"flat": trip(flat, plan_send(slot, placement, width), sizes, placement, me),
            "twohop": trip(twohop, plan_send_far(slot, weight, placement, by.grid, me), sizes, placement, me)}


def uniform(placement: Placement, tokens: int, top_k: int, seed: int) -> np.ndarray:
    """`[T, K]` int32: slots of K experts of each token, any as likely as the others, and so their replicas."""
    rng = np.random.default_rng(seed)
    expert = rng.random((tokens, len(placement.copies))).argsort(axis=1)[:, :top_k]
    replica = (rng.random(expert.shape) * placement.copies[expert]).astype(int)
    return placement.slots[expert, replica]


def trip(lane: Lane, plan: SendPlan, sizes: tuple[int, int], placement: Placement, me: int) -> Callable[[], None]:
    """Counts, rows of zeros there, and as many answers back; `sizes` in uint16. The first run is for its rungs.
    Collective."""
    units, home = sizes

    def dispatch() -> None:
        lane.headers.start(plan.counts, plan.home_counts, plan.behind)
        lane.headers.wait()
        lane.dispatch.start(lane.headers.incoming, lane.headers.extent)
        lane.dispatch.wait()

    def back() -> None:
        lane.home.start(dense(plan.home_counts, me), lane.headers.extent_home)
        lane.home.wait()

    def run() -> None:
        dispatch()
        back()

    for _ in range(2):
        rows, layout = lane.dispatch.room(plan.counts, units + plan.trailer.shape[1])
        rows[...] = 0
        place = slice(layout.rows) if layout.place is None else layout.place
        rows[place, units:] = array.beside(plan.trailer.view(np.uint16), rows)
        array.settle(rows)
        dispatch()
        landing = lane.dispatch.landing
        trailer = array.host(lane.dispatch.arrived[:, units:]).view(np.int16)
        receive = plan_receive(landing.counts, trailer if landing.place is None else trailer[landing.place],
                               len(placement.held_by(me)))
        answers, _ = lane.home.room(receive.home_counts, home)
        answers[...] = 0
        array.settle(answers)
        back()
    return run
