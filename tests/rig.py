"""A model on all ranks, without a job around it: what MPI tests put micro-batches through."""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hpcmoe import array, launch
from hpcmoe.config import Generate
from hpcmoe.engine import device as engine
from hpcmoe.engine import layer, schedule
from hpcmoe.engine.memory import Sizes
from hpcmoe.engine.seats import place
from hpcmoe.engine.together import heads_of, split_of
from hpcmoe.exchange.grid import grid
from hpcmoe.exchange.lane import Way
from hpcmoe.exchange.presum import Presum
from hpcmoe.exchange.relayed import Relayed
from hpcmoe.exchange.watch import Unwatched
from hpcmoe.files.model import Source
from hpcmoe.model.heads import cut
from hpcmoe.slots import Placement, Placements, held_by, shard_of
from hpcmoe.spec import ModelSpec
from hpcmoe.types import MODES, TRANSPORTS, Batch, Outcome, Speeds

GOLDENS = Path(__file__).parent / "goldens"
SPEEDS = Speeds(np.array([1.0, 512.0, 1e5]), np.array([10.0, 10.0, 1e3]), np.array([1.0, 9.0, 1e4]))
"""As if persistent requests paid for small messages only, so that `auto` takes now the one and now the other."""


class Course(NamedTuple):
    """How a step is run; at a number of ranks and micro-batches results must not depend on it."""

    schedule: str = "serial"
    way: Way = Way()
    hops: bool = False
    """whether rows go in two, between two nodes that share the ranks"""

    def __str__(self) -> str:
        return f"{self.schedule} {self.way.mode} {self.way.transport}{' in two hops' * self.hops}"


WAYS = [Way(mode, transport, SPEEDS) for mode, transport in itertools.product((*MODES, "auto"), TRANSPORTS)]
COURSES = [Course(*both) for both in itertools.product(("serial", "overlapped"), WAYS)]


HOLDERS = ("in order", "shuffled", "replicated", "replicated exactly")
"""Who holds which expert; with replicas that get equal parts of each rank's rows, or exactly equal ones of all rows."""


def hold(how: str, model: ModelSpec, ranks: int, seed: int = 0, shards: int = 1) -> Placements:
    """One of `HOLDERS`: experts in order over the ranks, or groups of so many, shuffled anew in each layer, or some of
    them with replicas."""
    if shards > 1:
        return [placement.cut(shards) for placement in hold(how, model, ranks // shards, seed)]
    if how == "in order":
        return place(model, ranks)
    rng = np.random.default_rng([seed, ranks])
    E, more = model.experts, max(3, ranks - model.experts) if how.startswith("replicated") else 0
    return [_shuffled(rng, E, ranks, more) for _ in range(model.layers)]


def _shuffled(rng: np.random.Generator, E: int, R: int, more: int) -> Placement:
    slots = max(E, R if more else 0)
    held = set(zip((rng.permutation(slots)[:E] * R // slots).tolist(), range(E)))
    held |= {(int(rng.integers(R)), int(rng.integers(E))) for _ in range(more)}
    return Placement(R, *np.array(sorted(held), np.int32).T)


class Rig:
    """Collective over `comm`; use as a context."""

    def __init__(self, comm, source: Source, dtype: str = "float32", slots: int = 8, length: int = 64,
                 course: Course = Course(), micro_batches: int = 1, watch: Unwatched | None = None,
                 device: bool = False, holders: str = HOLDERS[0], seed: int = 0,
                 top_k: int = 0, presum: bool = False, shards: int = 1, team: int = 1) -> None:
        """`device`: on a GPU, in bfloat16; holders and seed as in `hold`; `top_k`, where it is not the model's;
        `presum` as in the job; experts are cut into so many shards; teams of so many
        ranks split the heads."""
        kind = array.DTYPES["bfloat16" if device else dtype]
        placements = hold(holders, source.spec, comm.size, seed, shards)
        self._take_turns = schedule.overlapped if course.schedule == "overlapped" else schedule.serial
        way = replace(course.way, memory="device" if device else "host", exact=holders == "replicated exactly")
        nodes = tuple(rank * 2 // comm.size for rank in range(comm.size)) if course.hops else ()
        if course.hops:
            moe = source.spec.moe
            sums = Presum(kind, moe.round_weights) if presum else None
            way = replace(way, by=Relayed(grid(nodes), (top_k or moe.top_k) * shards, sums))
        split = split_of(comm, team)
        kept = cut(source.spec, shard_of(placements, comm.rank), heads_of(split))
        held = engine.load(source, held_by(placements, comm.rank), kind, way.memory, kept)
        self.segments = engine.open_segments(comm, watch or Unwatched(launch.rest), source.spec, held, placements,
                                             Sizes(slots, slots * length, length), Generate(), kind, way,
                                             micro_batches, overlapped=course.schedule == "overlapped",
                                             keep_logits=True, nodes=nodes, split=split)

    def forward(self, batch: Batch) -> Outcome:
        """One step; collective. Each rank brings its own batch, which may be empty."""
        outcome, = self.step([batch])
        return outcome

    def step(self, batches: Sequence[Batch]) -> list[Outcome]:
        """One step of some micro-batches; collective. All ranks bring as many."""
        return self._take_turns([layer.step(self.segments, batch, n) for n, batch in enumerate(batches)],
                                self.segments.clock, self.segments.watch.idle, self.segments.watch.attend)

    def __enter__(self) -> "Rig":
        return self

    def __exit__(self, kind, *rest) -> None:
        if kind is None:
            self.segments.free()
        else:  # the others may be anywhere
            self.segments.close()


def golden(family: str) -> tuple[np.lib.npyio.NpzFile, list[np.ndarray]]:
    """The goldens of a family, and its prompts."""
    found = np.load(GOLDENS / family / "golden.npz")
    offsets = found["offsets"]
    return found, [found["prompts"][a:b] for a, b in itertools.pairwise(offsets)]
