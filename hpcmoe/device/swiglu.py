"""SwiGLU; swiglu.cu. Twins: `kernels.swiglu`, `model.expert`."""

import cupy

from hpcmoe.device.cuda import launch
from hpcmoe.device.gemm import Gemm

ACTIVATED = 64
"""Threads of a block of `activate`: small ones, so that few rows lie on many multiprocessors."""


def swiglu(gemm: Gemm, x: cupy.ndarray, gate_up: cupy.ndarray, down: cupy.ndarray,
           out: cupy.ndarray | None = None) -> cupy.ndarray:
    """x `[T, H]`, gate_up `[2 I, H]` (gate rows first), down `[H, I]` -> `[T, H]`, all uint16."""
    return gemm(activate(gemm(x, gate_up)), down, out)


def activate(both: cupy.ndarray) -> cupy.ndarray:
    """silu(gate) * up of `[T, 2 I]` uint16 (gate first) -> `[T, I]`."""
    out = cupy.empty((len(both), both.shape[1] // 2), both.dtype)
    launch("swiglu.activate", -(-out.size // (8 * ACTIVATED)), both, out, cupy.int64(out.size), out.shape[1],
           threads=ACTIVATED)
    return out


def weigh(y: cupy.ndarray, logit: cupy.ndarray) -> None:
    """y `[T, H]` times the sigmoid of logit `[T, 1]`, both uint16, in place."""
    launch("swiglu.weigh", len(y), y, logit, y.shape[1])
