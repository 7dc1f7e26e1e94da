"""How a GPU's rows leave and come home where they travel in two hops: by plans that the host makes.

Their twin in a flat exchange are the kernels of `device.gate` and `device.rows`, which need no host.
"""

from dataclasses import replace

import cupy
import numpy as np

from hpcmoe.device.cuda import to_host
from hpcmoe.device.gate import Route
from hpcmoe.engine.room import Work
from hpcmoe.exchange.route_far import plan_send_far
from hpcmoe.slots import Placement
from hpcmoe.types import Layout, SendPlan


def tell(work: Work) -> None:
    """What the gate chose is on the host when the current stream comes to its end."""
    T, route = work.batch.rows, work.room.route
    work.told = to_host(route.expert[:T]), to_host(route.weight[:T])


def plan(work: Work, placement: Placement, me: int) -> SendPlan:
    """Behind `tell`, for rank `me`."""
    (chosen, weight), by = work.told, work.lane.by
    assert by
    slot = chosen if placement.replicated else placement.slot[chosen]
    return plan_send_far(slot, weight if by.presum else None, placement, by.grid, me)


def pack(x: cupy.ndarray, send: SendPlan, out: cupy.ndarray, layout: Layout) -> None:
    """The rows of x `[T, H]` that leave, with their trailers, to where they lie in out `[extent, units]`; uint16."""
    at = slice(layout.rows) if layout.place is None else cupy.asarray(layout.place)
    out[at, :x.shape[1]] = x[cupy.asarray(send.token)]
    out[at, x.shape[1]:] = cupy.asarray(send.trailer.view(np.uint16))


def homeward(work: Work, landing: Layout) -> Route:
    """Where each answer lies among all that came home, as if they were one rank's; for `rows.combine`."""
    home, by = landing.at(work.send.home), work.lane.by
    assert by
    there = home >= 0
    weight = there.astype(np.float32) if by.presum else work.told[1]  # sums are weighed already
    at = cupy.asarray(np.where(there, home, 0).astype(np.int32))
    return replace(work.room.route, expert=at, rank=cupy.zeros_like(at), home=at, weight=cupy.asarray(weight))
