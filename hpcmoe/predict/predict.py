"""A job at some number of ranks: how fast, of what bound, in how much memory, and which layout would be faster."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from hpcmoe.config import Job
from hpcmoe.engine.memory import Memory
from hpcmoe.predict import layout as layouts
from hpcmoe.predict.estimate import Estimate, estimate
from hpcmoe.predict.layout import Layout, Load
from hpcmoe.predict.machine import Hardware
from hpcmoe.predict.simulate import STEPS, Given, Simulation, Step, decode, prefill, simulate
from hpcmoe.spec import ModelSpec
from hpcmoe.types import STAGES

LOSES = 1.02
"""Another layout is faster where it gives more than so many times the tokens/s."""
TRIED = 2
"""Of the layouts that are estimated to be faster, how many are simulated."""


@dataclass(frozen=True)
class Speed:
    """How fast a layout answers prompts that begin together, as many as it works on at once, again and again."""

    layout: Layout
    load: Load
    memory: Memory
    fits: bool
    tpot: float
    """seconds of a step that gives each sequence a token"""
    ttft: float
    """seconds from the begin until all of them have their first token"""
    simulation: Simulation | None
    """None where this is an estimate in closed form"""
    estimated: Estimate
    """of a step of one token for each sequence"""

    @property
    def rate(self) -> float:
        """New tokens/s of a GPU, prompts included."""
        span = self.ttft + (self.load.new - 1) * self.tpot
        return self.load.sequences * self.load.new / span

    @property
    def steps(self) -> tuple[Step, ...]:
        """Those of one token for each sequence."""
        assert self.simulation
        return self.simulation.steps[1:]

    @property
    def exposed(self) -> float:
        """Seconds of such a step in which a rank waits for rows and computes nothing; means."""
        return float(np.mean([step.traffic.exposed for step in self.steps]))

    @property
    def bytes(self) -> np.ndarray:
        """`[len(CLASSES)]` float64: what a rank sends in such a step."""
        return np.mean([step.traffic.bytes for step in self.steps], axis=0)

    @property
    def imbalance(self) -> float:
        return float(np.mean([step.imbalance for step in self.steps]))


@dataclass(frozen=True)
class Prediction:
    """What is told of a number of ranks."""

    speed: Speed
    better: Speed | None
    """a layout that is faster, if there is one"""
    tried: int
    """other layouts that fit"""


def bounds(speed: Speed) -> list[tuple[str, float, str]]:
    """(stage, seconds of a step of one token for each sequence, what bounds it); of the exchange, those of waiting."""
    found, last = [], speed.steps[-1].done
    for stage in STAGES:
        seconds = float(np.mean([step.stages[STAGES.index(stage)] for step in speed.steps]))
        if stage == "exchange":
            found.append((stage, seconds, speed.estimated.bound))
        elif stage in last and seconds:
            found.append((stage, seconds, last[stage][0].bound))
    return found


def chosen(model: ModelSpec, ranks: int, hw: Hardware, base: Job, load: Load, given: Given,
           said: bool) -> Layout:
    """The layout of a job, if it has `said` it; else one expert per rank and layer, in as many groups as there are
    ranks for, with attention split as is estimated to be fastest of what fits."""
    if said:
        return Layout(ranks, base)
    groups = max(1, ranks // max(model.experts, 1))
    while ranks % groups:
        groups -= 1
    found = [speed for speed in ranked(model, hw, ranks, base, load, given, [groups]) if speed.layout.shards == 1]
    return found[0].layout if found else Layout(ranks, layouts.laid_out(base, data=groups))


def settled(model: ModelSpec, hw: Hardware, layout: Layout, load: Load, given: Given) -> Layout:
    """`layout` with what `auto` comes to, for steps of one token for each sequence: a probe would have measured it."""
    job, batch = layout.job, decode(model, load, 0)
    cuts = [replace(job.schedule, mode=mode, micro_batches=parts) for mode, parts in (("serial", 1), ("overlapped", 2))]
    hops = [replace(job.exchange, mode=mode) for mode in ("auto", "twohop")]
    tried = [Layout(layout.ranks, replace(job, schedule=cut, exchange=hop))
             for cut in (cuts if job.schedule.mode == "auto" else [job.schedule])
             for hop in (hops if job.exchange.mode == "auto" and model.moe else [job.exchange])]
    return min(tried, key=lambda one: estimate(model, hw, one, given, batch).seconds)


def measure(model: ModelSpec, hw: Hardware, layout: Layout, load: Load, given: Given, steps: int = STEPS) -> Speed:
    """Simulates a step of prompts, and `steps` steps of one token for each sequence."""
    filled, memory, fits = layouts.fill(model, layout, hw, load)
    layout = settled(model, hw, layout, filled, given)
    batches = [prefill(model, filled), *(decode(model, filled, n) for n in range(steps))]
    found = simulate(model, hw, layout, given, batches)
    tpot = float(np.mean([step.seconds for step in found.steps[1:]]))
    return Speed(layout, filled, memory, fits, tpot, _first(filled, found.steps[0].seconds), found,
                 estimate(model, hw, layout, given, batches[1]))


def _first(load: Load, seconds: float) -> float:
    """TTFT where a step of prompts takes so many seconds."""
    each = min(load.tokens, load.sequences * load.prompt)
    return -(-load.sequences * load.prompt // each) * seconds


def ranked(model: ModelSpec, hw: Hardware, ranks: int, base: Job, load: Load, given: Given,
           data: Sequence[int] = ()) -> list[Speed]:
    """The layouts that fit, estimated in closed form, the fastest first; of so many groups, or of any number."""
    found = []
    for layout, filled, memory in layouts.options(model, ranks, hw, base, load, data):
        layout = settled(model, hw, layout, filled, given)
        one = estimate(model, hw, layout, given, decode(model, filled, 0))
        first = estimate(model, hw, layout, given, prefill(model, filled))
        found.append(Speed(layout, filled, memory, True, one.seconds, _first(filled, first.seconds), None, one))
    return sorted(found, key=lambda speed: -speed.rate)


def predict(model: ModelSpec, hw: Hardware, ranks: int, base: Job, load: Load, given: Given, said: bool,
            steps: int = STEPS) -> Prediction:
    """At so many ranks; `said` as in `chosen`. Raises `JobError`, `InputError`, `Defect`."""
    speed = measure(model, hw, chosen(model, ranks, hw, base, load, given, said), load, given, steps)
    free = replace(base, parallel=replace(base.parallel, plan=""))
    others = [other for other in ranked(model, hw, ranks, free, load, given) if not same(other.layout, speed.layout)]
    better = None
    for other in others[:TRIED]:
        if not speed.fits or other.rate > LOSES * min(speed.rate, _estimated(model, hw, speed, given)):
            tried = measure(model, hw, other.layout, load, given, steps)
            if tried.rate > LOSES * (better or speed).rate or not (better or speed.fits):
                better = tried
    return Prediction(speed, better, len(others))


def left_out(job: Job, model: ModelSpec) -> list[str]:
    """What a job asks for that no step here does, a line each."""
    if not model.moe:
        return []
    lines = []
    if job.balance.mode == "bias":
        lines.append("balance.mode = \"bias\" is left out: experts are taken to be as busy as without it, and it would "
                     "even them; what that may give is what --zipf 0 says")
    if job.balance.replan_every:
        lines.append("balance.replan_every: slots hold what it comes to under a load that stays as this one; the steps "
                     "until then, and reading experts beside steps, are left out")
    return lines


def same(one: Layout, other: Layout) -> bool:
    """Whether both lay the model out alike."""
    return (one.data, one.team, one.shards) == (other.data, other.team, other.shards)


def _estimated(model: ModelSpec, hw: Hardware, speed: Speed, given: Given) -> float:
    """Its rate, in closed form."""
    first = estimate(model, hw, speed.layout, given, prefill(model, speed.load))
    return replace(speed, tpot=speed.estimated.seconds, ttft=_first(speed.load, first.seconds)).rate


def table(found: Sequence[Prediction], hw: Hardware) -> list[dict]:
    """What `hpcmoe predict -o` writes: a record for each number of ranks; seconds, bytes, tokens/s."""
    return [record(one.speed, hw) | {"better": record(one.better, hw) if one.better else None} for one in found]


def record(speed: Speed, hw: Hardware) -> dict:
    """One layout."""
    lay, gpus = speed.layout, speed.layout.ranks
    near, far = speed.bytes[1:].tolist()
    return {"ranks": gpus, "data": lay.data, "group": lay.group, "attention_tensor": lay.team,
            "expert_tensor": lay.shards, "sequences": speed.load.sequences, "memory": speed.memory.total,
            "fits": speed.fits, "rate": speed.rate * gpus, "rate_of_gpu": speed.rate, "tpot": speed.tpot,
            "ttft": speed.ttft, "exposed": speed.exposed, "bytes_same_node": near, "bytes_other_nodes": far,
            "imbalance": speed.imbalance, "gpu_hours": hours(speed), "node_hours": hours(speed) / per_node(lay, hw),
            "stages": {stage: {"seconds": seconds, "bound": bound}
                       for stage, seconds, bound in bounds(speed)}}


def hours(speed: Speed) -> float:
    """GPU-hours of a million new tokens."""
    return 1e6 / speed.rate / 3600


def per_node(layout: Layout, hw: Hardware) -> int:
    """GPUs of a node that the job takes."""
    return min(layout.job.parallel.ranks_per_node or hw.links.ranks_per_node, layout.ranks)
