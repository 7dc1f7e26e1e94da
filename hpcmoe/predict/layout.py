"""How a model lies on GPUs, what of it fits into their memory, and how much is done at once."""

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from hpcmoe.config import Exchange, Job, Parallel, Schedule
from hpcmoe.engine.memory import Memory, Sizes, plan_memory, plan_weights
from hpcmoe.engine.seats import group_size, place
from hpcmoe.predict.machine import Hardware
from hpcmoe.slots import Placements
from hpcmoe.spec import ModelSpec

SPLITS = (1, 2, 4, 8)
"""Ranks of a team, and shards of an expert, that are tried."""
MOST_SLOTS = 512
"""Experts of a rank and layer, at most."""
MOST = 256
"""Sequences per rank at most, where there is no job that says how many prompts there are."""


@dataclass(frozen=True)
class Layout:
    """Who computes what."""

    ranks: int
    """of all groups"""
    job: Job
    """for its parallel, exchange, schedule and balance"""

    @property
    def data(self) -> int:
        """Groups, which share the prompts and nothing else."""
        return self.job.parallel.data

    @property
    def group(self) -> int:
        """Ranks of each, among whom experts are spread. Raises `JobError`."""
        return group_size(self.ranks, self.job)

    @property
    def team(self) -> int:
        return self.job.parallel.attention_tensor

    @property
    def shards(self) -> int:
        return self.job.parallel.expert_tensor

    @property
    def overlapped(self) -> bool:
        return self.job.schedule.mode == "overlapped"

    @property
    def parts(self) -> int:
        """Micro-batches of a step; `auto` cuts by a probe only, and there is none."""
        return 1 if self.job.schedule.mode == "auto" else self.job.schedule.micro_batches

    def placements(self, model: ModelSpec) -> Placements:
        """Raises `JobError`, `InputError`."""
        return place(model, self.group, self.job)

    def slots(self, model: ModelSpec) -> int:
        """Experts, or shards of some, of the fullest rank and layer, without a plan and replicas."""
        return -(-model.experts * self.shards // self.group)

    def words(self, model: ModelSpec) -> str:
        """The layout in short."""
        slots = self.slots(model)
        parts = [f"{slots} expert{'s' if slots > 1 else ''} a GPU"] if model.moe else ["dense"]
        parts += [f"EP {self.group}"] if model.moe else []
        parts += [f"{self.data} data replicas"] if self.data > 1 else []
        parts += [f"experts in {self.shards} shards"] if self.shards > 1 else []
        parts += [f"attention over {self.team}"] if self.team > 1 else []
        return ", ".join(parts)


def bare(parallel: Parallel | None = None, exchange: Exchange | None = None, schedule: Schedule | None = None) -> Job:
    """A job that names no files."""
    return Job("", "", "", parallel=parallel or Parallel(), exchange=exchange or Exchange(),
               schedule=schedule or Schedule())


def laid_out(job: Job, **keys: int) -> Job:
    """The job with other keys of its section parallel."""
    return replace(job, parallel=replace(job.parallel, **keys))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Load:
    """How much is done, on each rank."""

    sequences: int
    """B, at once; 0 = as many as fit"""
    prompt: int
    """tokens of each prompt"""
    new: int
    """new tokens of each"""
    tokens: int
    """of one step at most"""
    most: int = MOST
    """sequences, where as many as fit are taken"""

    @property
    def sizes(self) -> Sizes:
        return Sizes(self.sequences, self.tokens, self.prompt + self.new)


def planner(model: ModelSpec, layout: Layout, hw: Hardware) -> Callable[[Load], Memory]:
    """-> a function from a `Load` to the `Memory` of the fullest rank, which weighs the weights once."""
    placements, where = layout.placements(model), "device" if hw.on_gpu else "host"
    taken = plan_weights(model, layout.job, placements, where)
    return lambda load: plan_memory(model, layout.job, placements, load.sizes, where, taken)


def fill(model: ModelSpec, layout: Layout, hw: Hardware, load: Load, least: int = 1) -> tuple[Load, Memory, bool]:
    """`load` with as many sequences as fit where it has 0; its memory; and whether it fits."""
    plan = planner(model, layout, hw)

    def with_(sequences: int) -> Load:
        return replace(load, sequences=sequences, tokens=max(load.tokens, sequences))
    if load.sequences:
        memory = plan(with_(load.sequences))
        return with_(load.sequences), memory, memory.total <= hw.device.memory
    found = bisect_left(range(1, load.most + 1), True, key=lambda n: plan(with_(n)).total > hw.device.memory)
    chosen = with_(max(found, least))
    memory = plan(chosen)
    return chosen, memory, memory.total <= hw.device.memory


def options(model: ModelSpec, ranks: int, hw: Hardware, base: Job, load: Load,
            data: Sequence[int] = ()) -> Iterator[tuple[Layout, Load, Memory]]:
    """The layouts that fit: of so many groups, or of 1, 2, 4, … of them, that each hold all experts; attention over 1,
    2, 4 or 8 ranks of a node; experts whole, or, where none fits so, in 2, 4 or 8 shards. Each with as many sequences
    as fit, where `load` has 0."""
    for groups in data or _halves(ranks):
        for shards in SPLITS:
            found = [one for team in SPLITS if (one := _fitting(model, hw, base, load, ranks, groups, team, shards))]
            yield from found
            if found:
                break


def _halves(ranks: int) -> list[int]:
    """1, 2, 4, … as far as they divide the ranks; then all ranks, each of which is a group."""
    found = [2**power for power in range(ranks.bit_length()) if ranks % 2**power == 0]
    return [*found, *({ranks} - set(found))]


def _fitting(model: ModelSpec, hw: Hardware, base: Job, load: Load, ranks: int, groups: int, team: int,
             shards: int) -> tuple[Layout, Load, Memory] | None:
    """None where there is no such layout, or it does not fit."""
    group, a = ranks // groups, model.attention
    if group % team or group % shards or team > min(hw.links.ranks_per_node, a.heads):
        return None
    if team > 1 and a.qk_norm == "full":
        return None
    if shards > 1 and (not model.moe or model.experts * shards > group or model.moe.hidden < shards):
        return None
    if shards == 1 and model.experts > MOST_SLOTS * group:
        return None
    layout = Layout(ranks, laid_out(base, data=groups, attention_tensor=team, expert_tensor=shards))
    filled, memory, fits = fill(model, layout, hw, load)
    return (layout, filled, memory) if fits else None
