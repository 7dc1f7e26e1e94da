"""`bench machine`: hardware, as `hpcmoe predict` takes it, that takes as long as this machine's ranks do.

Products are measured by themselves. What else a CPU's stage takes is a sum, t = t of its products + bytes / r + n o +
…, of the bytes around them, of how often it is begun, of sequences and of scores: a step that is simulated with one of
the unknowns at 1 and all others at 0 tells what that one is multiplied by. They are fitted to the measured stages of
all shapes at once by least squares of parts of a step, none below 0; those of a GPU are looked for (`launches`). Links,
and what turns cost, come last: those with which whole steps take as long, waits for other ranks included.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace

import numpy as np

from hpcmoe import gpu
from hpcmoe.bench import machine, products, solve
from hpcmoe.bench.launches import with_launches
from hpcmoe.bench.machine import Measured, Shape
from hpcmoe.bench.solve import ENDLESS, nonnegative, simulated, solved
from hpcmoe.launch import World
from hpcmoe.predict.machine import Device, Hardware, Links, Overhead, Products
from hpcmoe.types import STAGES

COMPUTED = tuple(stage for stage in STAGES if stage != "exchange")
TIMES = 4
"""Times that whole steps are simulated anew with what was found."""
CACHED = 1.25
"""How much faster than a GPU's matrices what a cache holds in part may be read, at most."""
LINKS, TURNS = np.array([1e-6, 1e-11]), np.array([1e-6, 1e-3])
"""What is a little of the values of `_with_links` and `_with_turns`."""


def calibrated(world: World, name: str, beside: Sequence[Shape] = ()) -> tuple[Hardware, list[Measured]]:
    """Hardware of that name that takes as long as these ranks do, and what it was fitted to; behind that what was
    measured of shapes `beside` it, in the same turns. Collective; the same on all ranks."""
    room, shapes = _room(world), machine.SHAPES[world.memory]
    table = products.measure(world)
    found = machine.measure(world, (*shapes, *beside))
    value, per_node = 4 if world.memory == "host" else 2, max(map(world.nodes.count, world.nodes))
    hw = fit(found[:len(shapes)], table, world.size, per_node, name, value, max(_sharing(world)))
    return replace(hw, device=replace(hw.device, memory=room)), found


def _room(world: World) -> float:
    """Bytes that each rank may take of what it shares with others: a node's memory, or a GPU's. Collective."""
    on_host = world.memory == "host"
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if on_host else gpu.free_memory()
    return float(min(world.comm.allgather(whole // _sharing(world)[world.rank])))


def _sharing(world: World) -> list[int]:
    """`[R]`: how many ranks have the node of each, or its GPU."""
    on_host = world.memory == "host"
    where = [(node, "" if on_host else world.gpus[rank].address) for rank, node in enumerate(world.nodes)]
    return [where.count(one) for one in where]


def fit(found: Sequence[Measured], table: Products, ranks: int, ranks_per_node: int, name: str, value: int,
        shared_by: int = 1) -> Hardware:
    """For weights and values of so many bytes; `table` as `bench.products` measures it; `shared_by` so many ranks is
    each GPU."""
    rows, values = np.meshgrid(np.array(table.rows, float), np.array(table.values, float), indexing="ij")
    taken = np.array(table.seconds).reshape(rows.shape)
    rate, flops = float((value * values / taken).max()), float((2 * rows * values / taken).max())
    idle = Hardware(name, Device(flops, rate, ENDLESS, weight=value, value=value, products=table),
                    Links(ranks_per_node, ENDLESS, ENDLESS), Overhead())
    return _on_cpu(found, idle, ranks) if value == 4 else _on_gpu(found, idle, ranks, shared_by)


def _on_cpu(found: Sequence[Measured], idle: Hardware, ranks: int) -> Hardware:
    """Its main thread looks after exchanges on the same core, so that turns cost the arithmetic."""
    serial, in_turns = ([one for one in found if (one.shape.micro_batches > 1) is several] for several in (False, True))
    stages = _stages(serial, idle, ranks)
    byte, rate = stages.pop("byte"), idle.device.rate
    share = 1 / (byte * rate) if byte else 1.0
    device = replace(idle.device, rate=rate * max(1.0, share), rate_share=min(1.0, share))
    known = replace(idle, device=device, overhead=Overhead(**stages, host=_host(serial, idle, ranks)))
    if ranks > 1:
        known = _whole(serial, ranks, LINKS, lambda values: _with_links(known, values))
    return _whole(in_turns, ranks, TURNS, lambda values: _with_turns(known, values)) if in_turns else known


def _on_gpu(found: Sequence[Measured], idle: Hardware, ranks: int, n: int) -> Hardware:
    """Products are those of all n ranks of a GPU at once: one that is alone on it has all of it. What an exchange takes
    of the main thread shows in turns only, and what it takes in all without them: they are fitted together."""
    device = idle.device
    whole = replace(device, rate=device.rate * n * CACHED, flops=device.flops * n, shared_by=n,
                    rate_share=1 / (n * CACHED), flops_share=1 / n)
    serial = [one for one in found if one.shape.micro_batches == 1]
    known = with_launches(serial, replace(idle, device=whole), ranks)
    if ranks == 1:
        return known

    def with_posts(values: np.ndarray) -> Hardware:
        found = _with_links(known, values[:2])
        return replace(found, overhead=replace(found.overhead, exchange=float(values[2])))
    return _whole(found, ranks, np.append(LINKS, LINKS[0]), with_posts)


def _stages(found: Sequence[Measured], idle: Hardware, ranks: int) -> dict[str, float]:
    """Seconds of a byte beside products, "byte", and the fields of an `Overhead` that stages have. `idle` hardware has
    products, and endless rates."""
    table = idle.device.products
    assert table
    endless = replace(idle.device, rate=ENDLESS, flops=ENDLESS)
    weights = replace(table, seconds=tuple(idle.device.weight * value for _ in table.rows for value in table.values))
    plain = replace(idle, device=replace(endless, products=None))

    def taken(hw: Hardware) -> np.ndarray:
        """`[shapes, COMPUTED]`"""
        steps = [simulated(one, hw, ranks).stages for one in found]
        return np.array([[step[STAGES.index(stage)] for stage in COMPUTED] for step in steps])
    moved = taken(replace(plain, device=replace(plain.device, rate=1.0)))
    in_products = taken(replace(idle, device=replace(endless, products=weights)))
    columns = {"byte": moved - in_products}
    columns |= {name: taken(replace(plain, overhead=Overhead(**{name: 1.0})))
                for name in (*COMPUTED, "span", "score")}
    measured = np.array([[one.stages[STAGES.index(stage)] for stage in COMPUTED] for one in found])
    rest = measured - taken(replace(idle, device=endless))
    share = np.array([[1 / one.seconds] for one in found])
    best = nonnegative(np.stack([(column * share).ravel() for column in columns.values()], axis=1),
                       (rest * share).ravel())
    return dict(zip(columns, best.tolist()))


def _host(found: Sequence[Measured], idle: Hardware, ranks: int) -> float:
    """Seconds of the main thread for each piece of work that it begins; a single rank's exchanges are nothing else."""
    ones = replace(idle, device=replace(idle.device, rate=ENDLESS, flops=ENDLESS, products=None),
                   overhead=Overhead(host=1.0))
    beside = [one.seconds - float(one.stages.sum()) + (float(one.stages[STAGES.index("exchange")]) if ranks == 1 else 0)
              for one in found]
    share = np.array([1 / one.seconds for one in found])
    begun = np.array([[simulated(one, ones, ranks).seconds] for one in found])
    return float(nonnegative(begun * share[:, None], np.array(beside) * share)[0])


def _with_links(known: Hardware, values: np.ndarray) -> Hardware:
    """An exchange's start, and seconds of a byte."""
    rate = 1 / max(float(values[1]), 1 / ENDLESS)
    return replace(known, links=replace(known.links, near_rate=rate, far_rate=rate, start=float(values[0])))


def _with_turns(known: Hardware, values: np.ndarray) -> Hardware:
    """Seconds of a piece of work in turns, and how much longer arithmetic takes then."""
    return replace(known, overhead=replace(known.overhead, turn=float(values[0])),
                   device=replace(known.device, in_turns=1 + float(values[1])))


def _whole(found: Sequence[Measured], ranks: int, little: np.ndarray,
           made: Callable[[np.ndarray], Hardware]) -> Hardware:
    """The machine, of values `[m]`, with which whole steps take as long as they did, waits for other ranks included."""
    return made(solved(lambda values: solve.seconds(found, made(values), ranks), np.ones(len(found)), little, little,
                       TIMES))


def rounded(hw: Hardware) -> dict:
    """As a table of three digits. What is reached at most is rounded up, so that no measured product beats it."""
    device = replace(hw.device, rate=1.006 * hw.device.rate, flops=1.006 * hw.device.flops)

    def short(value):
        if isinstance(value, dict):
            return {name: short(one) for name, one in value.items()}
        if isinstance(value, tuple):
            return [float(f"{one:.4g}") if isinstance(one, float) else one for one in value]
        return float(f"{value:.3g}") if isinstance(value, float) else value
    return short(asdict(replace(hw, device=device)))
