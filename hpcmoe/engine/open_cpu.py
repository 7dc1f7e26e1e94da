"""Opens the segments of a rank on a CPU."""

from collections.abc import Sequence

import numpy as np

from hpcmoe.config import Generate
from hpcmoe.engine.choose import chooser
from hpcmoe.engine.lanes import Lanes
from hpcmoe.engine.memory import Sizes
from hpcmoe.engine.segments import CpuSegments
from hpcmoe.engine.split import CpuTeam
from hpcmoe.engine.stream import AtOnce, Stream, Worker
from hpcmoe.engine.together import Split
from hpcmoe.engine.trace import Untraced
from hpcmoe.exchange.lane import Way
from hpcmoe.exchange.team import open_team
from hpcmoe.exchange.watch import Unwatched, Watch
from hpcmoe.model.cache import Cache, open_cache
from hpcmoe.model.heads import local
from hpcmoe.model.weights import Weights
from hpcmoe.slots import Placements
from hpcmoe.spec import ModelSpec


def open_on_cpu(comm, watch: Watch | Unwatched, model: ModelSpec, held: Weights, placements: Placements, sizes: Sizes,
                rules: Generate, dtype: np.dtype, way: Way, micro_batches: int, overlapped: bool, keep_logits: bool,
                nodes: Sequence[int], trace: Untraced | None, cache: Cache | None, split: Split | None) -> CpuSegments:
    """See `device.open_segments`. Collective over `comm`."""
    here, ranks = (local(model, split.heads), split.heads.of) if split else (model, 1)
    cache = cache or open_cache(here, ranks * sizes.sequences, sizes.length, dtype)
    lanes = Lanes(comm, watch.idle, way, micro_batches, model.experts)
    stream: Stream = Worker() if overlapped else AtOnce()
    found = CpuSegments(model, held, cache, placements, comm.rank, lanes, stream, watch, chooser(rules), dtype,
                        keep_logits, nodes, trace)
    if split:
        team = open_team(split.comm, watch.idle, way, micro_batches, sizes.sequences)
        found.team = CpuTeam(found, split, team, sizes.sequences)
    return found
