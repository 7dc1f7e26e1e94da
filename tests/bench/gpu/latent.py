"""Decode with a latent in the absorbed form, at DeepSeek-V3's size: all heads, and an eighth of them, as each of eight
ranks has that share a layer's attention.

`latent.py FILE`. The floor is of this GPU as it is: its copies and its large products, measured in between.
"""

import sys
from pathlib import Path

import cupy
import floors
import numpy as np
from figures import Figure, against, tell
from timing import both, medians, on_stream

from hpcmoe.array import BFLOAT16
from hpcmoe.device.gemm import Gemm
from hpcmoe.device.latent import Absorbed
from hpcmoe.engine import device
from hpcmoe.files.drawn import Drawn
from hpcmoe.spec import Attention, Latent, ModelSpec, Moe

RANK, TURNING, PLAIN = 512, 64, 128
HEADS = 128, 16
SIZES = [(batch, context) for context in (1024, 4096, 16384) for batch in (1, 8, 64)]
TARGET = 1.5
COLD = 1 << 28
"""Bytes of cache, at least, that layers go through in turns: more than what stays near the multiprocessors."""
LARGE = 8192
"""Rows and columns of the large product."""
COPIED = 1 << 30
"""Bytes."""


def drawn(*shape: int) -> cupy.ndarray:
    """Random bfloat16 of variance 1."""
    rows = int(np.prod(shape[:-1]))
    model = ModelSpec("some", 1, shape[-1], rows, 2, Attention(1, 1, 2), None, Moe(1, 1, 8))
    return device.load(Drawn(model, 0), lambda layer: [], BFLOAT16, "device").embedding.reshape(shape)


def rates(stream: cupy.cuda.Stream) -> tuple[float, float]:
    """bytes/s that are read and written by a copy, FLOP/s of a large product."""
    matrix, gemm = drawn(LARGE, LARGE), Gemm()
    some, other = (cupy.ones(COPIED, np.uint8) for _ in range(2))
    out = cupy.empty((LARGE, LARGE), np.uint16)
    found = medians({"copy": on_stream(stream, lambda: other.data.copy_from_device_async(some.data, COPIED), 1),
                     "product": on_stream(stream, lambda: gemm(matrix, matrix, out), 1)})
    return 2 * COPIED / found["copy"], 2 * LARGE ** 3 / found["product"]


def measure(stream: cupy.cuda.Stream, cache: cupy.ndarray, heads: int, batch: int, context: int,
            at_best: tuple[float, float]) -> Figure:
    """One token of each sequence, behind `context - 1` others."""
    width = RANK + TURNING
    layers = max(2, min(32, -(-COLD // (2 * batch * context * width))))
    kept = cache[:layers * batch * context * width].reshape(layers, batch, context, width)
    latent = Latent(RANK, TURNING, PLAIN)
    absorbed = Absorbed(Attention(heads, heads, PLAIN, latent=latent), latent)
    q, turned = drawn(batch, heads, RANK), drawn(batch, heads, TURNING)
    slot, out = cupy.arange(batch, dtype=np.int32), cupy.empty_like(q)
    position = cupy.full(batch, context - 1, np.int32)

    def work() -> None:
        for layer in range(layers):
            absorbed(q, turned, kept[layer], slot, position, out)
    cupy.cuda.Device().synchronize()
    seconds = medians(both(stream, work, layers), budget=2)
    size, flops = floors.absorbed(batch, context, heads, RANK, TURNING)
    return against("latent", f"absorbed decode, {heads} heads", f"batch {batch}, context {context:,}", seconds["graph"],
                   max(size / at_best[0], flops / at_best[1]), TARGET, launched=seconds["launched"])


def main() -> None:
    """One size after another."""
    out, stream, found = Path(sys.argv[1]), cupy.cuda.Stream(non_blocking=True), list[Figure]()
    at_best = rates(stream)
    print(f"copies {at_best[0] / 1e12:.2f} TB/s, products {at_best[1] / 1e12:.0f} TFLOP/s", flush=True)
    cache = drawn(max(2 * batch * context for batch, context in SIZES), RANK + TURNING).reshape(-1)
    for heads in HEADS:
        for batch, context in SIZES:
            found.append(measure(stream, cache, heads, batch, context, at_best))
            tell(out, found)


if __name__ == "__main__":
    main()
