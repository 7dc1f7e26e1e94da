"""The experts of a rank that holds several: their products as one launch where each has few rows, by cuBLAS."""

from collections.abc import Sequence

import cupy
import numpy as np
from nvmath.bindings import cublas

from hpcmoe.device.cuda import Mirror
from hpcmoe.device.gemm import BF16, SUM_IN_F32, Gemm
from hpcmoe.device.swiglu import activate
from hpcmoe.kernels.rows import alone

FEW = 128
"""Rows per expert, on the mean, up to which one launch for all beats a tuned one for each."""


class Grouped:
    """Products of one stream."""

    def __init__(self, gemm: Gemm, stream: cupy.cuda.Stream) -> None:
        self._gemm, self._handle = gemm, cublas.create()
        cublas.set_stream(self._handle, stream.ptr)
        self._pointers = Mirror(np.uint64), Mirror(np.uint64)

    def __call__(self, x: cupy.ndarray, counts: Sequence[int], gate_up: Sequence[cupy.ndarray],
                 down: Sequence[cupy.ndarray]) -> cupy.ndarray:
        """x `[N, H]` uint16, the first counts[0] rows of it for the first expert, and so on -> `[N, H]`.

        gate_up `[2 I, H]` (gate rows first) and down `[H, I]`, of each expert.
        """
        return self._products(activate(self._products(x, counts, gate_up, 0)), counts, down, 1)

    def _products(self, x: cupy.ndarray, counts: Sequence[int], weights: Sequence[cupy.ndarray],
                  turn: int) -> cupy.ndarray:
        """Rows times the weight `[out, in]` of their expert, transposed: `[N, out]`."""
        (rows, inner), width = x.shape, len(weights[0])
        out, ends = cupy.empty((rows, width), x.dtype), np.cumsum(counts)
        parts = [(slice(end - count, end), weight)
                 for end, count, weight in zip(ends.tolist(), counts, weights) if count]
        if alone() or rows > FEW * len(parts):
            for part, weight in parts:
                self._gemm(x[part], weight, out[part])
            return out
        if not parts:
            return out
        some = len(parts)
        first = np.array([part.start for part, _ in parts], np.uint64)
        there = self._pointers[turn].send(np.concatenate([
            np.array([weight.data.ptr for _, weight in parts], np.uint64),
            np.uint64(x.data.ptr) + first * np.uint64(inner * x.itemsize),
            np.uint64(out.data.ptr) + first * np.uint64(width * x.itemsize)]))
        a, b, c = (there[n * some:].data.ptr for n in range(3))
        one, none = np.ones(some, np.float32), np.zeros(some, np.float32)
        cublas.gemm_grouped_batched_ex(  # to cuBLAS, whose matrices lie by columns, it is out.T = weight @ x.T
            self._handle, [1] * some, [0] * some, [width] * some, [part.stop - part.start for part, _ in parts],
            [inner] * some, one.ctypes.data, a, BF16, [inner] * some, b, BF16, [inner] * some, none.ctypes.data, c,
            BF16, [width] * some, some, [1] * some, SUM_IN_F32)
        return out
