"""Products head by head, by cuBLAS. Twin: `kernels.linear.by_head`."""

import cupy
import numpy as np
from nvmath.bindings import cublas

from hpcmoe.device.gemm import BF16, BLOCK, SUM_IN_F32
from hpcmoe.device.scratch import WORKSPACE
from hpcmoe.kernels.rows import alone

DEFAULT = -1
"""cublasGemmAlgo_t"""
ONE, NONE = np.ones(1, np.float32), np.zeros(1, np.float32)


class Heads:
    """Products of one stream, which is current in all calls."""

    def __init__(self, stream: cupy.cuda.Stream, workspace: cupy.ndarray) -> None:
        """workspace `[WORKSPACE]` uint8 is the stream's: a capture must not ask for one."""
        self._handle, self._workspace = cublas.create(), workspace
        cublas.set_stream(self._handle, stream.ptr)
        cublas.set_workspace(self._handle, workspace.data.ptr, WORKSPACE)

    def __call__(self, x: cupy.ndarray, weight: cupy.ndarray, out: cupy.ndarray) -> None:
        """x `[T, heads, in]` times weight `[heads, out, in]`, transposed, head by head, to out `[T, heads, out]`.

        All uint16, views whose last values are neighbours; of weight the last or the last but one. Sums are float32,
        and rounded once.
        """
        if not alone():
            return self._multiply(x, weight, out)
        for first in range(0, len(x), BLOCK):
            part = out[first:first + BLOCK]
            some, answers = cupy.zeros((BLOCK, *x.shape[1:]), x.dtype), cupy.empty((BLOCK, *out.shape[1:]), x.dtype)
            some[:len(part)] = x[first:first + BLOCK]
            self._multiply(some, weight, answers)
            part[...] = answers[:len(part)]

    def _multiply(self, x: cupy.ndarray, weight: cupy.ndarray, out: cupy.ndarray) -> None:
        """To cuBLAS, whose matrices lie by columns, it is out.T = weight @ x.T."""
        (rows, heads, inner), width = x.shape, weight.shape[1]
        if not rows:
            return
        as_it_lies = weight.strides[2] == weight.itemsize
        (step, apart), (to_step, to_apart) = ((n // x.itemsize for n in part.strides[:2]) for part in (x, out))
        lead = weight.strides[1 if as_it_lies else 2] // x.itemsize
        cublas.gemm_strided_batched_ex(
            self._handle, int(as_it_lies), 0, width, rows, inner, ONE.ctypes.data, weight.data.ptr, BF16, lead,
            weight.strides[0] // x.itemsize, x.data.ptr, BF16, step, apart, NONE.ctypes.data, out.data.ptr, BF16,
            to_step, to_apart, heads, SUM_IN_F32, DEFAULT)
