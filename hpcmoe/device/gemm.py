"""Matrix products by cuBLASLt, with the fastest of its algorithms for each shape.

Through nvmath's bindings, which a stream capture takes; CuPy's own calls to cuBLAS refuse it. The last bits of a
product depend on the algorithm, so one is kept for each shape as long as the process lives. Where rows are computed
alone (`kernels.rows`) all products have `BLOCK` rows, and the algorithm that cuBLASLt's heuristics name first.
"""

from dataclasses import dataclass
from typing import Any

import cupy
import numpy as np
from nvmath.bindings import cublasLt

from hpcmoe import array
from hpcmoe.device.scratch import WORKSPACE
from hpcmoe.kernels.rows import alone

BF16, F32, SUM_IN_F32 = 14, 0, 68
"""cudaDataType and cublasComputeType."""
CANDIDATES, ROUNDS = 32, 15
TIMED = 256
"""Rows up to which the candidates are timed; above, the first is as good as any, and shapes come but once."""
NARROW = 1024
"""Columns up to which they are timed for more rows, too: few tiles leave much of a GPU idle."""
COLD = 1 << 26
"""Bytes that are written before each timing, more than the L2 cache holds: weights come from memory in a step, too."""
BLOCK = 16
"""Rows of a product, where rows are computed alone: a row's place among so few has no part in its bits."""
ONE, NONE = np.ones(1, np.float32), np.zeros(1, np.float32)


@dataclass(frozen=True)
class Plan:
    """How a product of one shape is computed."""

    operation: int
    layouts: tuple[int, int, int]
    algorithm: Any


_plans: dict[tuple, Plan] = {}
_fastest: dict[tuple, Any] = {}
"""The algorithm that was fastest, by shape, the rows rounded up to a power of two."""


class Gemm:
    """Products of one stream."""

    def __init__(self) -> None:
        self._handle = cublasLt.create()
        self.workspace = cupy.empty(WORKSPACE, np.uint8)
        self._preference = cublasLt.matmul_preference_create()
        _set(cublasLt.matmul_preference_set_attribute, self._preference,
             cublasLt.MatmulPreferenceAttribute.MAX_WORKSPACE_BYTES, WORKSPACE, np.uint64)

    def __call__(self, x: cupy.ndarray, weight: cupy.ndarray, out: cupy.ndarray | None = None,
                 bias: cupy.ndarray | None = None, dtype: Any = np.uint16) -> cupy.ndarray:
        """x `[T, in]` times weight `[out, in]`, transposed, plus bias `[out]`, all uint16 -> `[T, out]` of `dtype`.

        float32 or bfloat16 (uint16); sums are float32, and rounded once.
        """
        if bias is not None and (dtype if out is None else out.dtype) == np.float32:
            out = self(x, weight, out, dtype=np.float32)
            out += array.widen(bias)
            return out
        rows, width = len(x), len(weight)
        if out is None:
            out = cupy.empty((rows, width), dtype)
        if alone():
            for first in range(0, rows, BLOCK):
                part = out[first:first + BLOCK]
                part[...] = self._compute(_padded(x[first:first + BLOCK]), weight, bias, dtype=out.dtype)[:len(part)]
        elif rows:
            self._compute(x, weight, bias, out)
        return out

    def _compute(self, x: cupy.ndarray, weight: cupy.ndarray, bias: cupy.ndarray | None,
                 out: cupy.ndarray | None = None, dtype: Any = None) -> cupy.ndarray:
        if out is None:
            out = cupy.empty((len(x), len(weight)), dtype)
        key = (len(x), *weight.shape, out.dtype.char, bias is not None, alone())
        if key not in _plans:
            _plans[key] = self._plan(x, weight, out, bias)
        self._run(_plans[key], x, weight, out, bias)
        return out

    def _run(self, plan: Plan, x: cupy.ndarray, weight: cupy.ndarray, out: cupy.ndarray,
             bias: cupy.ndarray | None) -> None:
        if bias is not None:
            _set(cublasLt.matmul_desc_set_attribute, plan.operation, cublasLt.MatmulDescAttribute.BIAS_POINTER,
                 bias.data.ptr, np.uint64)
        a, b, d = plan.layouts
        cublasLt.matmul(self._handle, plan.operation, ONE.ctypes.data, weight.data.ptr, a, x.data.ptr, b,
                        NONE.ctypes.data, out.data.ptr, d, out.data.ptr, d, plan.algorithm.ptr,
                        self.workspace.data.ptr, WORKSPACE, cupy.cuda.get_current_stream().ptr)

    def _describe(self, x: cupy.ndarray, weight: cupy.ndarray, out: cupy.ndarray,
                  bias: cupy.ndarray | None) -> tuple[int, tuple[int, int, int]]:
        """Operation and layouts. To cuBLAS, whose matrices lie by columns, it is out.T = weight @ x.T."""
        (rows, inner), width = x.shape, len(weight)
        operation = cublasLt.matmul_desc_create(SUM_IN_F32, F32)
        _set(cublasLt.matmul_desc_set_attribute, operation, cublasLt.MatmulDescAttribute.TRANSA, 1, np.int32)
        if bias is not None:
            _set(cublasLt.matmul_desc_set_attribute, operation, cublasLt.MatmulDescAttribute.EPILOGUE,
                 cublasLt.Epilogue.BIAS, np.int32)
            _set(cublasLt.matmul_desc_set_attribute, operation, cublasLt.MatmulDescAttribute.BIAS_POINTER,
                 bias.data.ptr, np.uint64)
        layouts = (cublasLt.matrix_layout_create(BF16, inner, width, inner),
                   cublasLt.matrix_layout_create(BF16, inner, rows, inner),
                   cublasLt.matrix_layout_create(F32 if out.dtype == np.float32 else BF16, width, rows, width))
        return operation, layouts

    def _plan(self, x: cupy.ndarray, weight: cupy.ndarray, out: cupy.ndarray, bias: cupy.ndarray | None) -> Plan:
        operation, layouts = self._describe(x, weight, out, bias)
        if (len(x) <= TIMED or len(weight) <= NARROW) and not alone():
            algorithm = self._tuned(x, weight, out, bias)
            if _holds(cublasLt.matmul_algo_check, self._handle, operation, *layouts, layouts[2], algorithm.ptr):
                return Plan(operation, layouts, algorithm)
        return Plan(operation, layouts, self._candidates(operation, layouts, 1)[0])

    def _tuned(self, x: cupy.ndarray, weight: cupy.ndarray, out: cupy.ndarray, bias: cupy.ndarray | None) -> Any:
        """The fastest algorithm for the next power of two of rows."""
        rows = 1 << (len(x) - 1).bit_length()
        key = (rows, *weight.shape, out.dtype.char, bias is not None)
        if key not in _fastest:
            with cupy.cuda.using_allocator():  # outside the pools: it is not to stay
                cold = cupy.empty(COLD, np.uint8)
                operands = cupy.zeros((rows, x.shape[1]), x.dtype), weight, cupy.empty((rows, len(weight)), out.dtype)
            operation, layouts = self._describe(*operands, bias)
            plans = [Plan(operation, layouts, algorithm)
                     for algorithm in self._candidates(operation, layouts, CANDIDATES)]
            _fastest[key] = min(plans, key=lambda plan: self._time(plan, cold, *operands, bias)).algorithm
        return _fastest[key]

    def _candidates(self, operation: int, layouts: tuple[int, int, int], wanted: int) -> list[Any]:
        """The algorithms that cuBLASLt's heuristics name first."""
        found, count = cublasLt.MatmulHeuristicResult(wanted), np.zeros(1, np.int32)
        cublasLt.matmul_algo_get_heuristic(self._handle, operation, *layouts, layouts[2], self._preference, wanted,
                                           found.ptr, count.ctypes.data)
        return [found[n] for n in range(int(count[0]))]

    def _time(self, plan: Plan, cold: cupy.ndarray, *operands: Any) -> float:
        """Milliseconds, median of some runs, the first of which does not count."""
        self._run(plan, *operands)
        times = []
        for _ in range(ROUNDS):
            begin, end = cupy.cuda.Event(), cupy.cuda.Event()
            cold.fill(0)
            begin.record()
            self._run(plan, *operands)
            end.record()
            end.synchronize()
            times.append(cupy.cuda.get_elapsed_time(begin, end))
        return float(np.median(times))


def _padded(x: cupy.ndarray) -> cupy.ndarray:
    """`[BLOCK, in]`: x, and zeros behind it."""
    if len(x) == BLOCK:
        return x
    out = cupy.zeros((BLOCK, x.shape[1]), x.dtype)
    out[:len(x)] = x
    return out


def _holds(check: Any, handle: int, operation: int, a: int, b: int, c: int, d: int, algorithm: int) -> bool:
    """Whether an algorithm that was made for other rows does for these."""
    try:
        check(handle, operation, a, b, c, d, algorithm, cublasLt.MatmulHeuristicResult(1).ptr)
    except cublasLt.cuBLASLtError:
        return False
    return True


def _set(call: Any, target: int, attribute: Any, value: Any, dtype: Any) -> None:
    """cuBLASLt takes attributes by pointer."""
    buffer = np.array([value], dtype)
    call(target, int(attribute), buffer.ctypes.data, buffer.nbytes)
