"""RMS norms; norm.cu. Twin: `kernels.norm`."""

import cupy

from hpcmoe.device.cuda import across, launch


def rms_norm(x: cupy.ndarray, weight: cupy.ndarray, eps: float, index: cupy.ndarray | None = None,
             weight_first: bool = False, out: cupy.ndarray | None = None) -> cupy.ndarray:
    """x `[T, H]` uint16, weight `[H]` float32 -> `[T, H]`; with index `[N]` int32 of those rows only, `[N, H]`."""
    if out is None:
        out = cupy.empty((len(x if index is None else index), x.shape[1]), x.dtype)
    launch("norm.rms_norm", len(out), x, index, weight, out, x.shape[1], eps, weight_first,
           threads=across(x.shape[1], 1024))
    return out


def add_norm(x: cupy.ndarray, y: cupy.ndarray, weight: cupy.ndarray, eps: float, out: cupy.ndarray,
             weight_first: bool = False) -> None:
    """x += y, both `[T, H]` uint16; `out` becomes the norm of the sum."""
    launch("norm.add_norm", len(x), x, y, weight, out, x.shape[1], eps, weight_first,
           threads=across(x.shape[1], 1024))


def add(x: cupy.ndarray, y: cupy.ndarray) -> None:
    """x += y, both `[T, H]` uint16."""
    launch("norm.add", -(-x.size // (8 * 256)), x, y, cupy.int64(x.size))


def head_norm(x: cupy.ndarray, first: int, width: int, weight: cupy.ndarray, eps: float) -> None:
    """Norms columns `first` to `first + width` of x `[T, stride]` uint16, in place, in parts as long as weight."""
    part = len(weight)
    launch("norm.head_norm", (len(x), width // part), x[:, first:], weight, x.shape[1], part, eps, threads=128)
