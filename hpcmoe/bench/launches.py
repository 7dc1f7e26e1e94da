"""What stages of a GPU take beside their work, most of which is the main thread's, for it launches them.

A stage that is launched takes max(its work, its launch), so nothing here is a sum: all unknowns are looked for at once,
by stages and by the main thread's seconds beside them.
"""

from collections.abc import Sequence
from dataclasses import fields, replace

import numpy as np

from hpcmoe.bench.machine import Measured
from hpcmoe.bench.solve import simulated, solved
from hpcmoe.predict.cost import recurs
from hpcmoe.predict.machine import Hardware, Launch, Overhead
from hpcmoe.types import STAGES

TIMES, PART = 12, 0.7
"""How often, and how far at once, values are set anew."""
START = Launch(begin=1e-4, attention=2e-4, span=1e-4, gate=1e-4, pack=3e-5, expert=1.5e-4, order=2e-4,
               combine=6e-5, head=4e-4)
"""Where the search begins: what an H200's ranks were found to take, about."""
ATTENTION, HOST, LITTLE = 2e-5, 4e-5, 2e-6
"""The same of a layer's attention on the stream and of the main thread's pieces of work; and a little of any."""
EXCHANGE = STAGES.index("exchange")
IN_GRAPH = [STAGES.index(stage) for stage in ("attention", "gate")]
AT_HOME = [STAGES.index(stage) for stage in ("attention", "gate", "expert", "combine")]


def with_launches(found: Sequence[Measured], idle: Hardware, ranks: int) -> Hardware:
    """The machine with which stages take as long as they did. `idle` hardware has products, and both rates of all who
    share it."""
    names, device = [field.name for field in fields(Launch)], idle.device
    rate = device.rate * device.rate_share

    def made(values: np.ndarray) -> Hardware:
        share = min(1.0, 1 / (max(float(values[0]), 1 / device.rate) * device.rate))
        attention, host, *launch = values[1:].tolist()
        return replace(idle, device=replace(device, rate_share=share),
                       overhead=Overhead(attention=attention, host=host), launch=Launch(**dict(zip(names, launch))))

    def seen(values: np.ndarray) -> np.ndarray:
        steps = ((one, simulated(one, made(values), ranks)) for one in found)
        return np.concatenate([_parts(one, idle, step.seconds, step.stages, ranks) for one, step in steps])
    wanted = np.concatenate([_parts(one, idle, one.seconds, one.stages, ranks) for one in found])
    start = np.array([1 / rate, ATTENTION, HOST, *(getattr(START, name) for name in names)])
    little = np.array([0.02 / rate, *[LITTLE] * (len(start) - 1)])
    return made(solved(seen, wanted, start, little, TIMES, PART))


def _parts(one: Measured, hw: Hardware, seconds: float, stages: np.ndarray, ranks: int) -> np.ndarray:
    """Stages but for the exchange, those of a graph as one, and what is beside all; in parts of the step as measured. A
    single rank's exchange is nothing else than that."""
    parts, beside = stages.copy(), seconds - float(stages.sum())
    if ranks == 1:
        beside += float(stages[EXCHANGE])
    if recurs(hw, one.shape.batch.spans):
        graph = AT_HOME if ranks == 1 and one.shape.experts == 1 else IN_GRAPH
        whole = parts[graph].sum()
        parts[graph], parts[graph[0]] = 0.0, whole
    return np.append(np.delete(parts, EXCHANGE), beside) / one.seconds
