"""Independent groups of ranks (`parallel.data`): each with all experts, all over one pool of prompts.

They are neighbouring ranks, as many in each. Whatever belongs to the steps (exchanges, votes, placements, loads) sees
its own group only, as if that were all ranks; the lock, what is agreed before and behind the steps, and the
output belong to all.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from hpcmoe.engine.dealer import Dealer, Line, Source
from hpcmoe.engine.generate import Stop
from hpcmoe.engine.pool import Pool, in_turn
from hpcmoe.engine.stock import Stock
from hpcmoe.files.prompts import Prompts
from hpcmoe.launch import Idle, World, number
from hpcmoe.notice import TOLD
from hpcmoe.types import Begun


def split(world: World, groups: int) -> World:
    """This rank's group, where all ranks are cut into so many. Collective over all where there are several."""
    if groups == 1:
        return world
    size = world.size // groups
    mine = world.rank // size
    part = slice(mine * size, (mine + 1) * size)
    comm = world.comm.Split(mine, world.rank)
    return replace(world, comm=comm, rank=comm.rank, size=size, hosts=world.hosts[part], pids=world.pids[part],
                   nodes=number(world.nodes[part]), gpus=world.gpus[part], group=mine, groups=groups)


def open_pool(whole: World, group: World, attend: Idle, timeout: float, prompts: Prompts, waiting: np.ndarray,
              begun: Sequence[Begun]) -> tuple[Pool, Any]:
    """What this rank's group has to do of the rows `waiting` `[n]`, and the communicator by which it hears of it, None
    where it knows all. `attend` and `timeout` as in `dealer.Line`. Collective over the `whole`."""
    if group.groups == 1:
        return Pool(prompts, waiting.tolist(), begun), None
    comm = whole.comm.Dup()
    source: Source | None = None
    names = {rank: f"rank {rank} on {whole.hosts[rank]}" for rank in range(0, whole.size, group.size)}
    if whole.rank == 0:
        source = Dealer(comm, attend, names, timeout, in_turn(waiting.tolist(), [b.prompt for b in begun]))
    elif group.rank == 0:
        source = Line(comm, attend, names[0], timeout)
    return Stock(prompts, begun, source), comm


def joined(whole: World, group: World, stop: Stop | None, answered: int, prompts: int) -> Stop | None:
    """How the steps of all groups ended, from how this rank's did; the same on all ranks. `answered` by this rank, of
    so many `prompts`. Collective over the `whole`."""
    if group.groups == 1:
        return stop
    found = whole.comm.allgather((stop, answered))
    some = [stop for stop, _ in found[::group.size] if stop]
    begun, done = sum(stop.begun for stop in some), sum(answered for _, answered in found)
    if done == prompts:  # told to end too late
        return None
    first = next(stop for stop in some if stop.reason != TOLD)
    return replace(first, waiting=prompts - done - begun, begun=begun, steps=max(stop.steps for stop in some))
