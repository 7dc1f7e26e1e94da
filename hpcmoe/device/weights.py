"""Weights on the GPU, and how they get there; weights.cu."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from math import prod
from pathlib import Path

import cupy
import numpy as np

from hpcmoe import array
from hpcmoe.device.cuda import THREADS, Event, launch, pinned
from hpcmoe.device.drawn import draw
from hpcmoe.files import h5
from hpcmoe.files.drawn import Drawn
from hpcmoe.files.model import ModelFile, Source, not_finite, stored_blocks
from hpcmoe.spec import Tensor

ADDED_BY_GEMM = {"attention/qkv_bias", "attention/o_bias", "experts/gate_up_bias", "experts/down_bias"}
BUFFERS = 2


def keep(tensor: Tensor, values: np.ndarray) -> cupy.ndarray:
    """Matrices, and the biases that products add, as bfloat16 (uint16); other vectors as they are, float32."""
    wide = values.ndim == 1 and tensor.kind not in ADDED_BY_GEMM
    return cupy.asarray(values if wide else array.narrow(values))


@contextmanager
def bringing(source: Source) -> Iterator[Callable[[Tensor], cupy.ndarray] | None]:
    """What makes a matrix of `source` the same array as `keep` does, without float32 on the host; None if nothing does.

    All is there when the context ends. Raises `InputError`, and so does what it gives: the GPU looks for NaN.
    """
    if isinstance(source, Drawn):
        yield partial(draw, source)
    elif isinstance(source, ModelFile):
        with h5.reading(source.path, "model") as file:
            staging = Staging()
            try:
                yield lambda tensor: staging.fill(tensor, stored_blocks(file, source.path, tensor, staging.empty))
            finally:
                staging.settle()
            staging.check(source.path)
    else:
        yield None
    cupy.cuda.get_current_stream().synchronize()


class Staging:
    """Pinned buffers that take turns: while one is copied to the GPU, the next is read to."""

    def __init__(self) -> None:
        self._stream = cupy.cuda.Stream(non_blocking=True)
        self._buffers = [pinned(0, np.uint8) for _ in range(BUFFERS)]
        self._sent: list[Event | None] = [None] * BUFFERS
        self._turn = 0
        self._wide = cupy.empty(0, np.float32)
        self._found: list[tuple[Tensor, cupy.ndarray]] = []
        """`[1]` int32 for each tensor: whether it has a value that is NaN or infinite"""

    def empty(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """Room for a block in the next buffer, once what it held is copied. A `files.model.Empty`."""
        self._turn = (self._turn + 1) % BUFFERS
        sent, size = self._sent[self._turn], prod(shape) * dtype.itemsize
        if sent:
            sent.wait()
        if len(self._buffers[self._turn]) < size:
            self._buffers[self._turn] = pinned(_power_of_two(size), np.uint8)
        return self._buffers[self._turn][:size].view(dtype).reshape(shape)

    def fill(self, tensor: Tensor, blocks: Iterable[np.ndarray]) -> cupy.ndarray:
        """All blocks, each made in `empty`, as one array of uint16, narrowed where they are float32."""
        out, row, found = cupy.empty(tensor.shape, np.uint16), 0, cupy.zeros(1, np.int32)
        self._found.append((tensor, found))
        Event(cupy.cuda.get_current_stream()).hold(self._stream)  # who had this memory before may still use it
        for block in blocks:
            self._send(block, out[row:row + len(block)], found)
            row += len(block)
        return out

    def _send(self, block: np.ndarray, out: cupy.ndarray, found: cupy.ndarray) -> None:
        narrow = block.dtype == np.float32
        with self._stream:
            if narrow and self._wide.size < block.size:
                self._wide = cupy.empty(_power_of_two(block.size), np.float32)
            cupy.cuda.runtime.memcpyAsync((self._wide if narrow else out).data.ptr, block.ctypes.data, block.nbytes,
                                          cupy.cuda.runtime.memcpyHostToDevice, self._stream.ptr)
            self._sent[self._turn] = Event(self._stream)
            if narrow:
                launch("weights.to_bfloat16", -(-block.size // THREADS), self._wide, out, np.int64(block.size), found)
            else:
                launch("weights.look_through", -(-block.size // (8 * THREADS)), out, np.int64(block.size), found)

    def settle(self) -> None:
        """Returns when all is there."""
        self._stream.synchronize()

    def check(self, path: Path) -> None:
        """Raises `InputError` where a value is NaN or infinite; behind `settle`."""
        found = cupy.concatenate([cupy.zeros(1, np.int32), *(found for _, found in self._found)]).get()
        for tensor, wrong in zip((tensor for tensor, _ in self._found), found[1:].tolist()):
            if wrong:
                raise not_finite(path, tensor)


def _power_of_two(size: int) -> int:
    """The least that is not below `size`, so that blocks of nearly one size need no new room."""
    return 1 << (size - 1).bit_length()
