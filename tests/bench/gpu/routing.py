"""Gate, order and pack of a micro-batch for 256 destinations, and the combine of its answers.

`routing.py FILE [PYTHON]`: as experts.py.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import cupy
import floors
import numpy as np
from figures import Figure, against, tell
from timing import Peer, both, medians

from hpcmoe.array import BFLOAT16
from hpcmoe.device import rows
from hpcmoe.device.gate import Route, choose, make_map, make_route, order
from hpcmoe.device.gemm import Gemm
from hpcmoe.engine import device
from hpcmoe.exchange.route import trailer_width
from hpcmoe.files.drawn import Drawn
from hpcmoe.placement.plan import linear
from hpcmoe.spec import Attention, ModelSpec, Moe
from hpcmoe.types import SAMPLED

T, H, E, K, RANKS = 4096, 7168, 256, 8, 256
LAYERS = 4
"""Each with 59 MB of tokens; the rows that leave, 470 MB, go through the cache between two turns of a layer."""
MODEL = ModelSpec("routing", LAYERS, H, LAYERS * T, 2, Attention(1, 1, 2), None, Moe(E, K, 8))
PLACEMENT = linear(E, RANKS)


@dataclass(frozen=True)
class Layer:
    """What one layer works on."""

    x: cupy.ndarray
    """`[T, H]`"""
    gate: cupy.ndarray
    """`[E, H]`"""
    route: Route
    out_base: cupy.ndarray
    home_base: cupy.ndarray
    """`[R]` int32: where the rows for each rank begin, and its answers"""
    rows: cupy.ndarray
    """`[T * K, H]`: those that leave, and then the answers"""
    total: cupy.ndarray
    """`[T, H]`: what the answers are added to"""


class Routing:
    """The kernels on a layer, as `engine.gpu` calls them."""

    def __init__(self) -> None:
        self._moe, self._at, self._gemm = MODEL.moe, make_map(PLACEMENT, PLACEMENT.slots), Gemm()
        self._width, self._load = trailer_width(PLACEMENT.most, K), cupy.zeros(E, np.uint64)
        self._sample = cupy.zeros((SAMPLED, K), np.int16)

    def order(self, layer: Layer) -> None:
        """The choice of experts, and the order of the rows."""
        assert self._moe is not None
        choose(self._moe, self._gemm(layer.x, layer.gate, dtype=np.float32), None, layer.route, self._load,
               self._sample)
        order(layer.route, self._at.rank, T, RANKS)

    def leave(self, layer: Layer) -> None:
        """All up to the rows that leave."""
        self.order(layer)
        rows.pack(layer.x, layer.route, self._at, layer.out_base, layer.rows, self._width)

    def combine(self, layer: Layer) -> None:
        """The answers are home."""
        rows.combine(layer.total, layer.rows, None, layer.route, layer.home_base, False)


def make_layers() -> list[Layer]:
    """Random tokens and gates."""
    held = device.load(Drawn(MODEL, 0), lambda layer: [], BFLOAT16, "device")
    messages = [cupy.empty((T * K, H), np.uint16) for _ in range(2)]
    tokens = held.embedding.reshape(LAYERS, T, H)
    layers = []
    for n, (x, weights) in enumerate(zip(tokens, held.layers)):
        assert weights.gate is not None
        layers.append(Layer(x, weights.gate.weight, make_route(T, K, RANKS), cupy.empty(RANKS, np.int32),
                            cupy.empty(RANKS, np.int32), messages[n % 2], x.copy()))
    return layers


def main() -> None:
    """Both rows."""
    out, peer = Path(sys.argv[1]), Peer(sys.argv[2] if len(sys.argv) > 2 else "")
    layers, routing, stream = make_layers(), Routing(), cupy.cuda.Stream(non_blocking=True)
    cupy.cuda.Device().synchronize()
    for layer in layers:  # the counts are those of every later run
        with stream:
            routing.order(layer)
        stream.synchronize()
        for base, counts in ((layer.out_base, layer.route.counts), (layer.home_base, layer.route.home_counts)):
            assert counts.sum() == T * K
            base[...] = cupy.asarray(np.cumsum(counts) - counts)
    found: list[Figure] = []
    for name, what, kernels, floor, target in (
            ("routing", "gate, order, pack", routing.leave, floors.routing(T, E, K, H), 1.5),
            ("combine", "combine", routing.combine, floors.combine(T, K, H), 1.25)):
        def work(kernels=kernels) -> None:
            for layer in layers:
                kernels(layer)
        seconds = medians(both(stream, work, LAYERS) | peer.beside(f"{name} {T}"))
        found.append(against("routing", what, f"T {T:,}, E {E}, K {K}, {RANKS} destinations", seconds["graph"], floor,
                             target, launched=seconds["launched"], peer=seconds.get("peer")))
        tell(out, found)
    peer.close()


if __name__ == "__main__":
    main()
