"""A model on all ranks, without a job around it: what MPI tests put micro-batches through."""

import itertools
from pathlib import Path

import numpy as np

from hpcmoe import array, launch
from hpcmoe.config import Generate
from hpcmoe.engine import layer, schedule
from hpcmoe.engine.clock import Clock
from hpcmoe.engine.memory import place
from hpcmoe.engine.segments import CpuSegments, chooser
from hpcmoe.exchange.lane import open_lane
from hpcmoe.files.model import Source
from hpcmoe.model import weights
from hpcmoe.model.cache import KvCache
from hpcmoe.types import Batch, Outcome, Placement

GOLDENS = Path(__file__).parent / "goldens"


class Rig:
    """Collective over `comm`; use as a context."""

    def __init__(self, comm, source: Source, dtype: str = "float32", slots: int = 8, length: int = 64,
                 placement: Placement | None = None) -> None:
        model, kind = source.spec, array.DTYPES[dtype]
        self.placement = placement or place(model, comm.size)
        held = weights.load(source, lambda n: self.placement.held_by(comm.rank), kind)
        self.lane = open_lane(comm, launch.rest)
        self.clock = Clock()
        self.segments = CpuSegments(model, held, KvCache(model, slots, length, kind), lambda n: self.placement,
                                    self.lane, self.clock, chooser(Generate()), kind, keep_logits=True)

    def forward(self, batch: Batch) -> Outcome:
        """One step; collective. Each rank brings its own batch, which may be empty."""
        outcome, = schedule.serial([layer.step(self.segments, batch)], self.clock)
        return outcome

    def __enter__(self) -> "Rig":
        return self

    def __exit__(self, kind, *rest) -> None:
        if kind is None:
            self.lane.free()


def golden(family: str) -> tuple[np.lib.npyio.NpzFile, list[np.ndarray]]:
    """The goldens of a family, and its prompts."""
    found = np.load(GOLDENS / family / "golden.npz")
    offsets = found["offsets"]
    return found, [found["prompts"][a:b] for a, b in itertools.pairwise(offsets)]
