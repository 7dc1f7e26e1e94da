"""How fast a model gets onto a GPU: from a file, beside plain reads of it that take turns with it, and drawn.

    python tests/bench/load.py --size 8e9 --folder /where/models/lie

Plain reads fill one buffer of as many bytes as a block again and again. Before each timed read from the disk the file
is dropped from the page cache; how much of it was there nevertheless is in the table, for not every file system can.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from hpcmoe import array, gpu, spec_table
from hpcmoe.files import model
from hpcmoe.files.drawn import Drawn
from hpcmoe.files.model import ModelFile, Source
from hpcmoe.model import weights
from hpcmoe.model.weights import Weights
from hpcmoe.report import text
from hpcmoe.spec import ModelSpec

SPEC = Path(__file__).parents[2] / "inputs" / "seed61-e1.toml"
VOCABULARY = 8192
"""Less than the spec's, that a few layers are most of a small file."""
ROUNDS = 5
LOOKS = 64
"""Places of a file that are looked for in the page cache."""


def held(layer: int) -> list[int]:
    """The only expert. A `weights.Held`."""
    return [0]


def stored(model: ModelSpec, itemsize: int) -> int:
    """Bytes of all weights."""
    return sum(weights.size(model, held, lambda tensor: itemsize * tensor.values).values())


def shaped(size: float, itemsize: int) -> ModelSpec:
    """The seed's model with as many layers as make about `size` bytes, one at least."""
    whole = spec_table.load(SPEC)
    assert whole.dense is not None
    found = []
    for layers in range(1, whole.layers + 1):
        dense = replace(whole.dense, layers=min(3, layers))
        some = replace(whole, layers=layers, vocabulary=VOCABULARY, dense=dense)
        found.append((abs(stored(some, itemsize) - size), layers, some))
    return min(found)[2]


def cached(path: Path) -> float:
    """The share of the file that is in the page cache, by a few looks that do not wait for the disk; NaN: not known."""
    there = 0
    with path.open("rb") as file:
        for place in np.linspace(0, path.stat().st_size - 1, LOOKS).astype(int).tolist():
            try:
                there += os.preadv(file.fileno(), [bytearray(1)], place, os.RWF_NOWAIT)
            except BlockingIOError:
                pass
            except OSError:
                return np.nan
    return there / LOOKS


def drop(path: Path) -> None:
    """Takes the file out of the page cache, where the file system lets it."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read(path: Path, buffer: np.ndarray) -> None:
    """The whole file, into one buffer again and again."""
    with path.open("rb", buffering=0) as file:
        while file.readinto(memoryview(buffer)):
            pass


def bring(source: Source) -> Weights:
    """The whole model on the GPU, as `engine.device.load` brings it there, but without MPI."""
    from hpcmoe.device.weights import bringing, keep
    with bringing(source) as way:
        return weights.load(source, held, array.BFLOAT16, keep, way)


def timed(work: Callable[[], object]) -> float:
    """Seconds."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def measure(path: Path, block: int, cold: bool) -> tuple[list[float], dict[str, list[float]]]:
    """Shares of the file that were in the page cache, and seconds of each round, by what was done."""
    model.BLOCK = block
    found = ModelFile(path)
    buffer = np.zeros(block * array.DTYPES[found.dtype].itemsize, np.uint8)
    contest: dict[str, Callable[[], object]] = {"read": lambda: read(path, buffer), "load": lambda: bring(found)}
    for work in contest.values():
        work()
    shares: list[float] = []
    seconds: dict[str, list[float]] = {name: [] for name in contest}
    for number in range(ROUNDS):
        for name in sorted(contest, reverse=number % 2 == 1):  # for disks that remember what was read last
            if cold:
                drop(path)
            shares.append(cached(path))
            seconds[name].append(timed(contest[name]))
    return shares, seconds


def rate(size: int, seconds: list[float]) -> str:
    """GB/s: the median, and the slowest and the fastest."""
    middle, slow, fast = (size / some / 1e9 for some in (statistics.median(seconds), max(seconds), min(seconds)))
    return f"{middle:.2f} ({slow:.2f} to {fast:.2f})"


def page(path: Path, shape: ModelSpec, blocks: list[int]) -> None:
    """Measures and prints."""
    size, out = path.stat().st_size, text.console()
    grid = text.table("from", ">values a block", ">in the page cache", ">plain reads, GB/s", ">load, GB/s", ">of reads")
    for cold in (True, False):
        for block in blocks:
            shares, seconds = measure(path, block, cold)
            part = statistics.median(seconds["read"]) / statistics.median(seconds["load"])
            grid.add_row("disk" if cold else "page cache", str(block), f"{min(shares):.0%} to {max(shares):.0%}",
                         rate(size, seconds["read"]), rate(size, seconds["load"]), f"{part:.0%}")
    out.print(f"{path.parent}: {size / 1e9:.2f} GB of {ModelFile(path).dtype}, {shape.layers} layers; medians of "
              f"{ROUNDS} rounds, the slowest and the fastest")
    out.print(grid)
    drawn = Drawn(shape, 0)
    bring(drawn)
    size = stored(shape, array.BFLOAT16.itemsize)
    out.print(f"drawn: {rate(size, [timed(lambda: bring(drawn)) for _ in range(ROUNDS)])} GB/s of bfloat16")


def main() -> int:
    """Makes the file, measures, and removes it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=float, default=8e9, help="bytes of the file, about; 8e9")
    parser.add_argument("--dtype", choices=sorted(array.DTYPES), default="bfloat16", help="of the file")
    parser.add_argument("--folder", type=Path, help="on the file system to measure; that of temporary files")
    parser.add_argument("--blocks", default=str(model.BLOCK), help="values of a block, several with commas between")
    options = parser.parse_args()
    missing = gpu.take("gpu").failure
    if missing:
        print(f"load: {missing}", file=sys.stderr)
        return 2
    blocks = [int(float(word)) for word in options.blocks.split(",")]
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        path, shape = Path(folder) / "model.h5", shaped(options.size, array.DTYPES[options.dtype].itemsize)
        model.write(path, Drawn(shape, 0), options.dtype)
        page(path, shape, blocks)
    return 0


if __name__ == "__main__":
    sys.exit(main())
