"""SwiGLU; swiglu.cu. Twins: `kernels.swiglu`, `model.expert`."""

from typing import Any

import cupy
import numpy as np

from hpcmoe.array import BFLOAT16
from hpcmoe.device.cuda import launch
from hpcmoe.device.gemm import Gemm

ACTIVATED = 64
"""Threads of a block of `activate`: small ones, so that few rows lie on many multiprocessors."""


def swiglu(gemm: Gemm, x: cupy.ndarray, gate_up: cupy.ndarray, down: cupy.ndarray, out: cupy.ndarray | None = None,
           gate_up_bias: cupy.ndarray | None = None, down_bias: cupy.ndarray | None = None,
           limit: float = 0, dtype: Any = np.uint16) -> cupy.ndarray:
    """x `[T, H]`, gate_up `[2 I, H]` (gate rows first), down `[H, I]`, their biases -> `[T, H]`, all uint16; or
    float32, not rounded, where `dtype` or `out` is so. `limit` as in `spec.Moe`."""
    return gemm(activate(gemm(x, gate_up, bias=gate_up_bias), limit), down, out, down_bias, dtype)


def activate(both: cupy.ndarray, limit: float = 0) -> cupy.ndarray:
    """silu(gate) * up of `[T, 2 I]` uint16 (gate first) -> `[T, I]`; with a limit as
    `kernels.swiglu.activate_within`."""
    out = cupy.empty((len(both), both.shape[1] // 2), both.dtype)
    more = (float(np.float32(BFLOAT16.type(limit))),) if limit else ()
    launch(f"swiglu.activate{'_within' * bool(limit)}", -(-out.size // (8 * ACTIVATED)), both, out,
           cupy.int64(out.size), out.shape[1], *more, threads=ACTIVATED)
    return out


def weigh(y: cupy.ndarray, logit: cupy.ndarray) -> None:
    """y `[T, H]` times the sigmoid of logit `[T, 1]`, both uint16, in place."""
    launch("swiglu.weigh", len(y), y, logit, y.shape[1])
