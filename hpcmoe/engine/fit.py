"""Whether a job fits into the memory of its GPUs, how much of it does, and what is said where it does not."""

import sys
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np

from hpcmoe.config import Job
from hpcmoe.engine.memory import MOST_TOKENS, Memory, Sizes, plan_memory, plan_sizes
from hpcmoe.errors import DeviceError, size
from hpcmoe.launch import Agreed, World
from hpcmoe.slots import Placements
from hpcmoe.slots import most as most_slots
from hpcmoe.spec import ModelSpec

FULL = 2
"""cudaErrorMemoryAllocation and CUDA_ERROR_OUT_OF_MEMORY."""


CUTS = (2, 4, 8)
"""Ranks over which attention, or experts, are advised to be cut."""


@dataclass(frozen=True)
class Fit:
    """A job beside the memory that there is for it."""

    sizes: Sizes
    memory: Memory
    most: int
    """sequences of the largest batch that fits; 0 where not even one does"""


def fit(model: ModelSpec, job: Job, lengths: np.ndarray, placements: Placements, limit: float) -> Fit:
    """The sizes of a job on GPUs where each rank has `limit` bytes, and the memory that they need.

    Where the job leaves the sequences to be planned, as many as fit. lengths `[P]` int64 are those of the prompts.
    """
    def sizes(sequences: int) -> Sizes:
        set_so = replace(job, schedule=replace(job.schedule, max_sequences=sequences))
        return plan_sizes(model, set_so, lengths, placements[0].ranks)

    def plan(sequences: int) -> Memory:
        return plan_memory(model, job, placements, sizes(sequences), "device")
    chosen = plan_sizes(model, job, lengths, placements[0].ranks).sequences
    most = largest(plan, limit, job.schedule.max_tokens or MOST_TOKENS)
    if most and not job.schedule.max_sequences:
        chosen = min(chosen, most)
    return Fit(sizes(chosen), plan(chosen), most)


def largest(plan: Callable[[int], Memory], limit: float, most: int) -> int:
    """The most sequences, from 1 to `most`, whose plan is within `limit` bytes; 0 where not even one's is."""
    return bisect_left(range(1, most + 1), True, key=lambda sequences: plan(sequences).total > limit)


def advice(memory: Memory, limit: float, most: int, slots: int) -> str:
    """What would help where `memory` is more than `limit` bytes; `most` as in `Fit`.

    `slots` is the number of experts per rank and layer.
    """
    weights, experts = sum(memory.weights.values()), memory.weights.get("experts", 0)
    if most:
        return f"the largest batch that fits is schedule.max_sequences = {most}"
    if weights <= limit:
        return ("not even one sequence fits beside the weights: shorter ones (generate.max_new_tokens) or fewer tokens "
                "a step (schedule.max_tokens) need less")
    if slots > 1 and weights - experts + experts / slots <= limit:
        return f"the weights are {size(weights)}, and more ranks hold fewer experts each"
    attention = memory.weights.get("attention", 0)
    for key, part, held in (("attention_tensor", "attention", attention), ("expert_tensor", "experts", experts)):
        cuts = next((cut for cut in CUTS if weights - held + held / cut <= limit), None)
        if cuts and (part == "attention" or slots == 1):
            return (f"the weights are {size(weights)}, {size(held)} of them of {part}: parallel.{key} = {cuts} cuts "
                    "these over more ranks")
    fewer = weights - (experts - experts / slots)
    if slots > 1 and (cuts := next((cut for cut in CUTS if fewer - attention + attention / cut <= limit), None)):
        return (f"the weights are {size(weights)}: parallel.attention_tensor = {cuts} cuts {size(attention)} of "
                f"attention, and more ranks hold fewer of the {size(experts)} of experts each")
    part = max(memory.weights, key=lambda name: memory.weights[name])
    return (f"the weights alone are {size(weights)}, and more ranks do not help: each holds all of the {part}, "
            f"{size(memory.weights[part])}")


def plan_rank(world: World, model: ModelSpec, job: Job, lengths: np.ndarray, placements: Placements,
              free: Callable[[], int]) -> tuple[Sizes, Memory]:
    """How much each rank works on at once, and the memory that it is going to take: the same on all ranks.

    `placements` are those of each group of them; `free` tells the bytes that this rank's GPU has free. Collective,
    before anything is allocated there. Raises `Agreed` where the fullest rank's plan does not fit on the GPU that has
    the least.
    """
    job = _on_nodes(job, world.nodes)
    if world.memory == "host":
        sizes = plan_sizes(model, job, lengths, placements[0].ranks)
        return sizes, plan_memory(model, job, placements, sizes, "host")
    shares = world.comm.allgather(free() // _sharers(world, world.rank))
    rank = int(np.argmin(shares))
    found = fit(model, job, lengths, placements, shares[rank])
    if found.memory.total > shares[rank]:
        sharers = _sharers(world, rank)
        raise Agreed(DeviceError.code, f"rank {rank} on {world.hosts[rank]}: its GPU does not hold the plan, "
                     f"{found.memory.words()}: {size(shares[rank])} are free"
                     f"{f' for each of the {sharers} ranks that share it' if sharers > 1 else ''}; "
                     f"{advice(found.memory, shares[rank], found.most, most_slots(placements))}", rank == world.rank)
    if world.rank == 0 and found.sizes.sequences < plan_sizes(model, job, lengths, placements[0].ranks).sequences:
        print(f"hpcmoe: sequences at once on each rank: {found.sizes.sequences}, as many as its GPU's memory holds",
              file=sys.stderr, flush=True)
    return found.sizes, found.memory


def _on_nodes(job: Job, nodes: Sequence[int]) -> Job:
    """The job with the nodes that were found; rows may go in two hops between some of a group."""
    groups = [part.tolist() for part in np.split(np.array(nodes), job.parallel.data)]
    if all(len(set(group)) == 1 for group in groups):
        return job
    most = max(group.count(node) for group in groups for node in group)
    return replace(job, parallel=replace(job.parallel, ranks_per_node=most))


def _sharers(world: World, rank: int) -> int:
    """How many ranks sit on a rank's GPU, itself included."""
    places = [(host, gpu.address) for host, gpu in zip(world.hosts, world.gpus)]
    return places.count(places[rank])


@contextmanager
def planned(memory: Memory) -> Iterator[None]:
    """What is done within may fill the memory: that raises `DeviceError`, which tells the plan."""
    try:
        yield
    except Exception as error:
        if not _is_full(error):
            raise
        why = " ".join(str(error).split()).rstrip(".")
        raise DeviceError(f"memory is full ({why}); planned were {memory.words()}; fewer or shorter sequences need "
                          "less (schedule.max_sequences, schedule.max_tokens)") from None


def _is_full(error: Exception) -> bool:
    """NumPy and CuPy's pool raise MemoryErrors; CUDA, asked by CuPy for all else, a status."""
    return isinstance(error, MemoryError) or (type(error).__module__.startswith("cupy")
                                              and getattr(error, "status", None) == FULL)
