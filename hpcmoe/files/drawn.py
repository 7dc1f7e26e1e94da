"""Random weights for any spec, by a counter-based generator keyed by (seed, tensor name).

Any rank can draw any part of any tensor without the rest, so a benchmark of 60 GB needs no file, and
the weights are the same at any number of ranks. A value is a uniform 16-bit integer, shifted and scaled:
four come from each word of Philox 4x64-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3",
SC 2011), so that a device can draw the same bits
(`device.drawn`).
"""

import hashlib
from collections.abc import Iterator

import numpy as np

from hpcmoe import tables
from hpcmoe.files.model import row_blocks
from hpcmoe.slots import Piece
from hpcmoe.spec import ModelSpec, Tensor

PER_COUNTER = 16
"""Values that one step of the counter gives: 4 words of 64 bits, 4 values each."""
MIDDLE, SCALE = np.float32(32767.5), np.float32(12 ** 0.5 / 65536)
"""A 16-bit integer less `MIDDLE`, times `SCALE`, has mean 0 and variance 1."""


class Drawn:
    """A model without a file. A `files.model.Source`."""

    tokenizer = chat = ""

    def __init__(self, spec: ModelSpec, seed: int) -> None:
        self.spec, self.seed = spec, seed
        self.dtype = "float32"
        shapes = hashlib.blake2b(tables.dump(spec).encode(), digest_size=8).hexdigest()
        self.uuid = f"spec {shapes} drawn from seed {seed}"

    def blocks(self, tensor: Tensor) -> Iterator[np.ndarray]:
        """See `Source`. Matrices have variance 1 / in, norms lie around 1."""
        key, shape = key_of(self.seed, tensor), tensor.whole if isinstance(tensor, Piece) else tensor.shape
        width = shape[1] if len(shape) > 1 else 1
        mean, deviation = moments(tensor)
        for some in row_blocks(tensor, shape):
            block = uniform(key, some.start * width, (some.stop - some.start) * width)
            block *= deviation
            block += mean
            block = block.reshape(-1, *shape[1:])
            yield block[tensor.within(slice(None))] if isinstance(tensor, Piece) else block


def uniform(key: int, first: int, count: int) -> np.ndarray:
    """Values `first` to `first + count` of the stream of `key`, `[count]` float32 of mean 0, variance 1."""
    counter, skip = divmod(first, PER_COUNTER)
    words = -(-(skip + count) // 4)
    raw = np.random.Philox(key=key, counter=counter).random_raw(words)
    values = raw.astype("<u8", copy=False).view("<u2")[skip:skip + count].astype(np.float32)
    values -= MIDDLE
    values *= SCALE
    return values


def key_of(seed: int, tensor: Tensor) -> int:
    """The generator's key of 128 bits."""
    name = f"{seed}/{tensor.name}".encode()
    return int.from_bytes(hashlib.blake2b(name, digest_size=16).digest(), "little")


def moments(tensor: Tensor) -> tuple[np.float32, np.float32]:
    """Mean and standard deviation of its values."""
    if tensor.part == "norm":
        return np.float32(1), np.float32(0.1)
    if tensor.part == "embedding":
        return np.float32(0), np.float32(1)
    if len(tensor.shape) == 1:  # a bias
        return np.float32(0), np.float32(0.1)
    shape = tensor.whole if isinstance(tensor, Piece) else tensor.shape
    return np.float32(0), np.float32(shape[-1] ** -0.5)
