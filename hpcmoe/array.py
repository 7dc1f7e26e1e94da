"""Number formats: bfloat16 in NumPy, in files and in messages.

NumPy has no bfloat16 of its own (`ml_dtypes` adds it), HDF5 and the MPI wheels have none either: files
and messages carry its bits as uint16. Weights on a CPU are float32 arrays whatever the compute
dtype, so that BLAS takes them as they are.
"""

import mmap
import weakref
from typing import Any

import ml_dtypes
import numpy as np

FLOAT32 = np.dtype(np.float32)
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
DTYPES = {"float32": FLOAT32, "bfloat16": BFLOAT16}
MEMORY = ("host", "device", "pinned")
"""Where arrays lie; pinned memory is the host's, and a GPU reaches it, too."""


def answers(dtype: np.dtype, shards: int) -> np.dtype:
    """The dtype of rows on their way home, where experts of so many shards compute in `dtype`: parts of a sum are not
    rounded yet."""
    return dtype if shards == 1 else FLOAT32


def empty(shape: tuple[int, ...], memory: str) -> Any:
    """uint16 in host memory (NumPy's), or on the current GPU (CuPy's)."""
    if memory == "host":
        return np.empty(shape, np.uint16)
    import cupy
    if memory == "device":
        return cupy.empty(shape, np.uint16)
    return _pinned(shape)


def _pinned(shape: tuple[int, ...]) -> np.ndarray:
    """Pages of this process's own, registered with CUDA: those that CUDA makes, other processes cannot copy from."""
    from cupy.cuda import runtime
    count = int(np.prod(shape))
    pages = mmap.mmap(-1, max(2 * count, 1))
    values = np.frombuffer(pages, np.uint16, count)
    if count:
        runtime.hostRegister(values.ctypes.data, 2 * count, 0)
        weakref.finalize(values, runtime.hostUnregister, values.ctypes.data).atexit = False
    return values.reshape(shape)


def host(values: Any) -> np.ndarray:
    """The same values as NumPy's: themselves, or a copy from the GPU."""
    return values if isinstance(values, np.ndarray) else values.get()


def beside(values: np.ndarray, other: Any) -> Any:
    """The same values where `other` lies: themselves, or a copy on the GPU."""
    return values if isinstance(other, np.ndarray) else on_device(values)


def on_device(values: np.ndarray) -> Any:
    """A copy on the current GPU."""
    import cupy
    return cupy.asarray(values)


def module(values: Any) -> Any:
    """NumPy, or CuPy where they are on the GPU."""
    if isinstance(values, np.ndarray):
        return np
    import cupy
    return cupy


def take(rows: Any, index: np.ndarray, out: Any) -> None:
    """Rows `index` `[N]` of rows `[extent, units]` to out `[N, units]`: of one dtype, in one memory, without gaps."""
    if isinstance(rows, np.ndarray):
        np.take(rows, index, axis=0, out=out, mode="clip")  # else it would pass through another array
    else:
        module(rows).take(rows, on_device(index), axis=0, out=out)


def settle(values: Any) -> None:
    """Returns when what the current stream was given, of writing `values` too, is done."""
    if not isinstance(values, np.ndarray):
        from cupy.cuda import get_current_stream
        get_current_stream().synchronize()


def copy(values: Any, into: Any, stream: Any) -> None:
    """Between arrays of one shape and dtype without gaps, one of them on the GPU, in the order of a stream of CuPy's.

    It is under way beside what the host does where the other one is pinned.
    """
    from cupy.cuda import runtime
    runtime.memcpyAsync(_address(into), _address(values), values.nbytes, runtime.memcpyDefault, stream.ptr)


def _address(values: Any) -> int:
    return values.ctypes.data if isinstance(values, np.ndarray) else values.data.ptr


def widen(bits: np.ndarray) -> np.ndarray:
    """bfloat16 bits, uint16 of any shape, in any memory -> float32 of the same values."""
    out = module(bits).empty(bits.shape, np.float32)
    wide = out.view(np.uint32)
    wide[...] = bits
    wide <<= 16
    return out


def narrow(values: np.ndarray) -> np.ndarray:
    """float32, in any memory -> bfloat16 bits as uint16, rounded to nearest even."""
    return values.astype(BFLOAT16).view(np.uint16) if isinstance(values, np.ndarray) else _rounded(values)


def _rounded(values: Any) -> Any:
    """`narrow` without a type for it."""
    bits = values.view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return module(values).where(values != values, 0x7FC0, rounded).astype(np.uint16)
