"""Opens the segments of a rank on a GPU."""

from collections.abc import Sequence

from hpcmoe.config import Generate
from hpcmoe.device.limits import check_model
from hpcmoe.engine.attends import Cache, open_cache
from hpcmoe.engine.gpu import GpuSegments
from hpcmoe.engine.gpu_team import GpuTeam, TeamRoom
from hpcmoe.engine.lanes import Lanes
from hpcmoe.engine.memory import Sizes
from hpcmoe.engine.room import Room
from hpcmoe.engine.together import Split
from hpcmoe.engine.trace import Untraced
from hpcmoe.exchange.lane import Way
from hpcmoe.exchange.team import open_team
from hpcmoe.exchange.watch import Unwatched, Watch
from hpcmoe.model.heads import local
from hpcmoe.model.weights import Weights
from hpcmoe.slots import Placements
from hpcmoe.spec import ModelSpec


def open_on_gpu(comm, watch: Watch | Unwatched, model: ModelSpec, held: Weights, placements: Placements, sizes: Sizes,
                rules: Generate, way: Way, micro_batches: int, keep_logits: bool, nodes: Sequence[int],
                trace: Untraced | None, cache: Cache | None, split: Split | None) -> GpuSegments:
    """See `device.open_segments`; `held` is on the device. Collective over `comm`. Raises `InputError`."""
    check_model(model, placements[0].shards)
    here, ranks = (local(model, split.heads), split.heads.of) if split else (model, 1)
    cache = cache or open_cache(here, ranks * sizes.sequences, sizes.length)
    lanes = Lanes(comm, watch.idle, way, micro_batches, model.experts)
    rooms = [Room(model, sizes.tokens, placements) for _ in range(micro_batches)]
    found = GpuSegments(model, held, cache, placements, comm.rank, lanes, rooms, watch, rules, keep_logits, nodes,
                        trace, here)
    if split:
        team = open_team(split.comm, watch.idle, way, micro_batches, sizes.sequences)
        spaces = [TeamRoom(model.hidden, sizes.tokens, ranks) for _ in range(micro_batches)]
        found.team = GpuTeam(found, split, team, spaces, sizes.sequences)
    return found
