"""A model on all ranks, without a job around it: what MPI tests put micro-batches through."""

import itertools
from pathlib import Path

import numpy as np

from hpcmoe import array, launch
from hpcmoe.config import Generate
from hpcmoe.engine import layer, schedule
from hpcmoe.engine.memory import Sizes, place
from hpcmoe.engine.segments import chooser, open_segments
from hpcmoe.exchange.lane import Way
from hpcmoe.exchange.watch import Unwatched
from hpcmoe.files.model import Source
from hpcmoe.model import weights
from hpcmoe.types import Batch, Outcome

GOLDENS = Path(__file__).parent / "goldens"


class Rig:
    """Collective over `comm`; use as a context."""

    def __init__(self, comm, source: Source, dtype: str = "float32", slots: int = 8, length: int = 64) -> None:
        kind, placement = array.DTYPES[dtype], place(source.spec, comm.size)
        held = weights.load(source, lambda n: placement.held_by(comm.rank), kind)
        sizes = Sizes(slots, 0, length)
        self.segments = open_segments(comm, Unwatched(launch.rest), source.spec, held, placement, sizes,
                                      chooser(Generate()), kind, Way(), keep_logits=True)

    def forward(self, batch: Batch) -> Outcome:
        """One step; collective. Each rank brings its own batch, which may be empty."""
        outcome, = schedule.serial([layer.step(self.segments, batch)], self.segments.clock, launch.rest)
        return outcome

    def __enter__(self) -> "Rig":
        return self

    def __exit__(self, kind, *rest) -> None:
        if kind is None:
            self.segments.free()


def golden(family: str) -> tuple[np.lib.npyio.NpzFile, list[np.ndarray]]:
    """The goldens of a family, and its prompts."""
    found = np.load(GOLDENS / family / "golden.npz")
    offsets = found["offsets"]
    return found, [found["prompts"][a:b] for a, b in itertools.pairwise(offsets)]
