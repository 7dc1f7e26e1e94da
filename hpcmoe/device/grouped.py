"""The experts of a rank that holds several: their products as one launch where each has few rows, by cuBLAS."""

from collections.abc import Sequence
from typing import Any

import cupy
import numpy as np
from nvmath.bindings import cublas

from hpcmoe.device.cuda import Mirror, across, launch
from hpcmoe.device.gemm import BF16, SUM_IN_F32, Gemm
from hpcmoe.device.scratch import FEW
from hpcmoe.device.swiglu import activate
from hpcmoe.kernels.rows import alone

Matrix = tuple[cupy.ndarray, cupy.ndarray | None]
"""A weight `[out, in]` and its bias `[out]`, if it has one, as all others of the rank then have."""


class Grouped:
    """Products of one stream."""

    def __init__(self, gemm: Gemm, stream: cupy.cuda.Stream) -> None:
        self._gemm, self._handle = gemm, cublas.create()
        cublas.set_stream(self._handle, stream.ptr)
        self._pointers = Mirror(np.uint64), Mirror(np.uint64)

    def __call__(self, x: cupy.ndarray, counts: Sequence[int], gate_up: Sequence[Matrix], down: Sequence[Matrix],
                 limit: float = 0, dtype: Any = np.uint16) -> cupy.ndarray:
        """x `[N, H]` uint16, the first counts[0] rows of it for the first expert, and so on -> `[N, H]` of `dtype`,
        float32 or bfloat16 (uint16).

        gate_up `[2 I, H]` (gate rows first) and down `[H, I]` of each expert, with their biases; `limit` as in
        `spec.Moe`.
        """
        return self._products(activate(self._products(x, counts, gate_up, 0), limit), counts, down, 1,
                              dtype)

    def _products(self, x: cupy.ndarray, counts: Sequence[int], matrices: Sequence[Matrix], turn: int,
                  dtype: Any = np.uint16) -> cupy.ndarray:
        """Rows times the weight `[out, in]` of their expert, transposed, plus its bias `[out]`: `[N, out]`."""
        (rows, inner), width = x.shape, len(matrices[0][0])
        out, ends = cupy.empty((rows, width), dtype), np.cumsum(counts)
        parts = [(slice(end - count, end), weight, bias)
                 for end, count, (weight, bias) in zip(ends.tolist(), counts, matrices) if count]
        if alone() or rows > FEW * len(parts) or out.dtype != x.dtype:  # cuBLAS has no such groups
            for part, weight, bias in parts:
                self._gemm(x[part], weight, out[part], bias)
            return out
        if not parts:
            return out
        some = len(parts)
        first = np.array([part.start for part, *_ in parts], np.uint64)
        biases = [bias.data.ptr for *_, bias in parts if bias is not None]
        there = self._pointers[turn].send(np.concatenate([
            np.array([weight.data.ptr for _, weight, _ in parts], np.uint64),
            np.uint64(x.data.ptr) + first * np.uint64(inner * x.itemsize),
            np.uint64(out.data.ptr) + first * np.uint64(width * x.itemsize), first, np.array(biases, np.uint64)]))
        a, b, c = (there[n * some:].data.ptr for n in range(3))
        if biases:  # what is there is added in float32, and the sum rounded once
            launch("swiglu.begin_with", rows, there[4 * some:], there[3 * some:], out, some, width,
                   threads=across(width))
        one, kept = np.ones(some, np.float32), np.full(some, float(bool(biases)), np.float32)
        cublas.gemm_grouped_batched_ex(  # to cuBLAS, whose matrices lie by columns, it is out.T = weight @ x.T
            self._handle, [1] * some, [0] * some, [width] * some, [part.stop - part.start for part, *_ in parts],
            [inner] * some, one.ctypes.data, a, BF16, [inner] * some, b, BF16, [inner] * some, kept.ctypes.data, c,
            BF16, [width] * some, some, [1] * some, SUM_IN_F32)
        return out
