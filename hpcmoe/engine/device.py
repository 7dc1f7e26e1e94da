"""On which device a rank computes: the weights and segments of a CPU, or of a GPU."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np

from hpcmoe.config import Generate
from hpcmoe.engine.clock import Clock
from hpcmoe.engine.layer import Segments
from hpcmoe.engine.memory import Sizes
from hpcmoe.engine.open_cpu import open_on_cpu
from hpcmoe.engine.together import Split
from hpcmoe.engine.trace import Untraced
from hpcmoe.exchange.lane import Way
from hpcmoe.exchange.watch import Unwatched, Watch
from hpcmoe.files.model import Source
from hpcmoe.model import weights
from hpcmoe.model.weights import Cut, Held, Swiglu, Weights, whole
from hpcmoe.slots import Placement, Placements
from hpcmoe.spec import ModelSpec


class RankSegments(Segments, Protocol):
    """What `CpuSegments` and `GpuSegments` have in common."""

    model: ModelSpec
    cache: Any
    clock: Clock
    watch: Watch | Unwatched

    def change(self, layer: int, placement: Placement, held: Weights) -> None:
        """Between two steps: from now on a layer has this placement, with as many slots on each rank as before, and the
        rank holds what is in `held`. Local, on all ranks alike."""

    def steer(self, bias: np.ndarray) -> None:
        """Between two steps: bias `[L, E]` float32 is added to scores in the choice of experts from now on, and
        what it moves is counted. Local."""

    def close(self) -> None:
        """Nothing more is begun, and what was is done. Local."""

    def free(self) -> None:
        """Collective."""


def load(source: Source, held: Held, dtype: np.dtype, memory: str, cut: Cut = whole) -> Weights:
    """What this rank holds, in `memory` (one of `array.MEMORY`); of tensors what `cut` leaves. Local. Raises
    `InputError`."""
    with _into(memory, source) as ways:
        return weights.load(source, held, dtype, *ways, cut=cut)


def take_over(held: Weights, source: Source, more: Held, dtype: np.dtype, memory: str) -> Weights:
    """`held` with the experts `more` of each layer. As `load`."""
    with _into(memory, source) as ways:
        return weights.take_over(held, source, more, dtype, *ways)


def experts(source: Source, layer: int, wanted: Sequence[int], dtype: np.dtype, memory: str,
            gpu: int, cut: Cut = whole) -> tuple[Swiglu, ...]:
    """Some experts of a layer, on any thread; `gpu` is the number of the rank's own. As `load`."""
    if memory == "device":
        from cupy.cuda import runtime
        runtime.setDevice(gpu)  # each thread has one
    with _into(memory, source) as ways:
        return weights.experts(source, layer, wanted, dtype, *ways, cut=cut)


@contextmanager
def _into(memory: str, source: Source) -> Iterator[tuple]:
    """How tensors of a source come to be in `memory`: a `Keep` and a `Bring`, where it takes any."""
    if memory == "host":
        yield ()
        return
    from hpcmoe.device.weights import bringing, keep
    with bringing(source) as bring:
        yield keep, bring


def open_segments(comm, watch: Watch | Unwatched, model: ModelSpec, held: Weights, placements: Placements, sizes: Sizes,
                  rules: Generate, dtype: np.dtype, way: Way, micro_batches: int = 1, overlapped: bool = False,
                  keep_logits: bool = False, nodes: Sequence[int] = (), trace: Untraced | None = None,
                  cache: Any = None, split: Split | None = None) -> RankSegments:
    """The segments of this rank around the weights that it holds. They compute where rows are in `way.memory`.

    `nodes` as in `CpuSegments`; `cache` is that of earlier segments, for the same sequences; `split` where the heads of
    attention are. Collective over `comm`. Raises `InputError` where the device cannot compute the model.
    """
    if way.memory == "host":
        return open_on_cpu(comm, watch, model, held, placements, sizes, rules, dtype, way, micro_batches, overlapped,
                           keep_logits, nodes, trace, cache, split)
    from hpcmoe.engine.open_gpu import open_on_gpu
    return open_on_gpu(comm, watch, model, held, placements, sizes, rules, way, micro_batches, keep_logits, nodes,
                       trace, cache, split)
