"""`make bench-twohop`: dispatch and return flat and in two hops, over a slow link, and what `auto` takes.

Two hosts (`twohosts`) with a core each, some ranks on either. For each K the table of `auto` is measured as in a job,
for 1, 4, 16, … tokens on each rank; then both are measured again at other numbers of them, and the table is asked. The
link's share is what the bytes of the flat exchange take there, but for those that a burst lets through, in parts of its
time: where that is little, ranks that share a core are what costs, and one hop more is one more turn of them all.
"""

import sys
from dataclasses import replace

import numpy as np
import twohosts

from hpcmoe import launch
from hpcmoe.array import BFLOAT16
from hpcmoe.exchange import tune, tune_hops
from hpcmoe.exchange.grid import grid
from hpcmoe.exchange.lane import Way, open_lanes
from hpcmoe.exchange.presum import Presum
from hpcmoe.exchange.relayed import Relayed
from hpcmoe.exchange.route import plan_send, trailer_width
from hpcmoe.exchange.twohop import open_twohop
from hpcmoe.placement.plan import linear
from hpcmoe.report import text
from hpcmoe.slots import Placement

RANKS = (2, 4)
"""On each host."""
RATE = 60e6
"""bytes/s of the link, each way"""
UNITS = 7168
"""H of the seed's model, in bfloat16"""
EXPERTS = 8
TOP_K = (1, 2, 4, 8)
TOKENS = (2, 8, 32, 96)
"""On each rank: not those of the table, so that it has to tell."""
MOST = 64
"""Of the table."""
ROUNDS = 9
LIMITED = 0.5
"""The link's share from which on it is what limits."""


def on_the_link(world: launch.World, placement: Placement, top_k: int, tokens: int) -> float:
    """Seconds that the rows of a flat exchange, both ways, are on the link. Collective."""
    slot = tune_hops.uniform(placement, tokens, top_k, world.rank)
    plan = plan_send(slot, placement, trailer_width(placement.most, top_k))
    other = np.array(world.nodes) != world.nodes[world.rank]
    every = world.comm.allgather((world.nodes[world.rank], plan.counts[other].sum(), plan.home_counts[other].sum()))
    leaving = [sum(there if host == node else back for node, there, back in every) for host in set(world.nodes)]
    return max(0, max(leaving) * 2 * UNITS - 2 * twohosts.BURST) / RATE


def seconds(world: launch.World, placement: Placement, way: Way, ways: dict[str, Relayed]) -> list[dict[str, float]]:
    """Of flat dispatch and return, and of each of `ways`, for each of `TOKENS`. Collective."""
    flat, = open_lanes(world.comm, world.idle, way, 1)
    lanes = {name: open_twohop(world.comm, world.idle, way, by, 1)[0] for name, by in ways.items()}
    found = []
    for tokens in TOKENS:
        contest = {}
        for name, by in ways.items():
            both = tune_hops.contestants(world.comm, flat, lanes[name], UNITS, by, placement, tokens)
            contest |= {"flat": both["flat"], name: both["twohop"]}
        found.append(tune.medians(world.comm, world.idle, contest, ROUNDS))
    for lane in (flat, *lanes.values()):
        lane.free()
    return found


def page(world: launch.World) -> None:
    """What a rank does; rank 0 prints. Collective."""
    if world.nodes.index(world.nodes[world.rank]) == world.rank:
        twohosts.shape(RATE)
    launch.meet(world.comm)
    way, placement, nodes = Way("auto"), linear(EXPERTS, world.size), grid(world.nodes)
    way = replace(way, speeds=tune.measure(world.comm, world.idle, UNITS, way))
    table = text.table(">K", ">T", ">flat", ">link", ">two hops", ">of flat", "auto", "", ">summed", ">of flat", "auto")
    faster, right = [], []
    for K in TOP_K:
        ways = {"rows": Relayed(nodes, K), "sums": Relayed(nodes, K, Presum(BFLOAT16))}
        tables = {name: tune_hops.measure(world.comm, world.idle, UNITS, way, by, placement, MOST)
                  for name, by in ways.items()}
        for tokens, took in zip(TOKENS, seconds(world, placement, way, ways)):
            link = on_the_link(world, placement, K, tokens) / took["flat"]
            cells = [str(K), str(tokens), text.seconds(took["flat"]), f"{100 * link:.0f} %"]
            for name in ways:
                pays, wins = tables[name].pays(tokens), took[name] < took["flat"]
                right.append(pays == wins)
                faster += [wins] if K >= 4 and link >= LIMITED else []
                cells += [text.seconds(took[name]), f"{took[name] / took['flat']:.2f}",
                          ("two" if pays else "flat") + ("" if pays == wins else ", wrong"), ""]
            table.add_row(*cells[:-1])
    if world.rank == 0:
        out = text.console()
        out.print(f"{world.library}; {world.size // 2} ranks and a core on each of two hosts, {RATE / 1e6:.0f} MB/s "
                  f"between them, {EXPERTS} experts, rows of {2 * UNITS} bytes; medians of {ROUNDS} rounds")
        out.print(table)
        print(f"K >= 4 and the link limits: two hops are faster in {sum(faster)} of {len(faster)}; "
              f"auto takes the faster in {sum(right)} of {len(right)}", flush=True)


if __name__ == "__main__":
    sys.exit(twohosts.main(__file__, page, *RANKS))
