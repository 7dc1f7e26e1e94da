"""Random weights, drawn where they are kept; drawn.cu. Twin: `files.drawn`."""

import cupy
import numpy as np

from hpcmoe.device.cuda import THREADS, launch
from hpcmoe.files.drawn import MIDDLE, PER_COUNTER, SCALE, Drawn, key_of, moments
from hpcmoe.slots import Piece
from hpcmoe.spec import Tensor

WORD = (1 << 64) - 1


def draw(source: Drawn, tensor: Tensor) -> cupy.ndarray:
    """The tensor as bfloat16 (uint16): the bits of `source.blocks`, rounded to nearest even."""
    if isinstance(tensor, Piece):
        out, row = cupy.empty(tensor.shape, np.uint16), 0
        with cupy.cuda.using_allocator():  # outside the pools: the whole is not to stay
            whole = draw(source, Tensor(tensor.name, tensor.whole, tensor.part, tensor.expert))
        for first, end in tensor.rows:
            out[row:row + end - first] = whole[tensor.within(slice(first, end))]
            row += end - first
        return out
    out, key, (mean, deviation) = cupy.empty(tensor.shape, np.uint16), key_of(source.seed, tensor), moments(tensor)
    launch("drawn.draw", -(-out.size // (PER_COUNTER * THREADS)), out, np.int64(out.size), np.uint64(key & WORD),
           np.uint64(key >> 64), MIDDLE, SCALE, deviation, mean)
    return out
