"""Kernels by name, the events of streams, and memory that both sides reach."""

import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import cupy
import numpy as np
from cupy.cuda import nvrtc

FOLDER = Path(__file__).parent
NOTHING = np.uintp(0)
"""A null pointer."""
FOR_HOPPER = {"absorbed"}
"""Files with instructions of compute capability 9.0 that others do not have."""
THREADS = 256
"""Of a block, where nothing else is said."""
SHARED = 48 * 1024
"""Bytes of shared memory that a block has without asking for more."""


@cache
def _module(file: str) -> cupy.RawModule:
    if file in FOR_HOPPER:
        return _for_hopper(_code("common.cuh", "wgmma.cuh", f"{file}.cu"), file)
    return cupy.RawModule(code=_code("common.cuh", f"{file}.cu"), options=("-default-device",))


def _code(*files: str) -> str:
    return "".join((FOLDER / file).read_text() for file in files)


def _for_hopper(code: str, kernel: str) -> cupy.RawModule:
    """With the instructions that Hopper alone has, for which CuPy has no option; `kernel` is one of its kernels."""
    program = nvrtc.createProgram(code, "", (), ())
    try:
        nvrtc.compileProgram(program, ("-default-device", "-arch=sm_90a"))
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(nvrtc.getCUBIN(program))
            file.flush()
            module = cupy.RawModule(path=file.name)
            module.get_function(kernel)  # loads it all
            return module
    except nvrtc.NVRTCError:
        raise RuntimeError(nvrtc.getProgramLog(program)) from None
    finally:
        nvrtc.destroyProgram(program)


@cache
def _kernel(file: str, name: str) -> cupy.RawKernel:
    return _module(file).get_function(name)


def across(width: int, most: int = THREADS) -> int:
    """Threads of a block that takes a row of `width` values, 8 each at a time: up to `most`, and none left over."""
    vectors = max(1, -(-width // 8))
    turns = -(-vectors // most)
    return -(-vectors // (32 * turns)) * 32


def launch(kernel: str, grid: int | tuple[int, ...], *arguments: Any, threads: int = THREADS, shared: int = 0) -> None:
    """Runs "file.kernel" over a grid of blocks on the current stream; an empty grid runs nothing.

    Arguments are arrays, NumPy's in pinned memory too, Python's int (32 bits) and float (32 bits), None, or a scalar of
    NumPy's for any other width.
    """
    grid = (grid,) if isinstance(grid, int) else grid
    if min(grid) > 0:
        function = _kernel(*kernel.split("."))
        if shared > SHARED:
            function.max_dynamic_shared_size_bytes = shared
        function(grid, (threads,), tuple(map(_argument, arguments)), shared_mem=shared)


@cache
def copies_in_bulk() -> bool:
    """Whether this GPU's copy engines move rows to and from shared memory (Hopper's and later ones')."""
    return int(cupy.cuda.Device().compute_capability) >= 90


@cache
def is_hopper() -> bool:
    """Whether this GPU has what is in `FOR_HOPPER`."""
    return int(cupy.cuda.Device().compute_capability) == 90


def _argument(value: Any) -> Any:
    if value is None:
        return NOTHING
    if isinstance(value, np.ndarray):
        return np.uintp(value.ctypes.data)
    if isinstance(value, np.generic):  # float64 is a float, too
        return value
    if isinstance(value, (bool, int)):
        return np.int32(value)
    return np.float32(value) if isinstance(value, float) else value


def pinned(shape: int | tuple[int, ...], dtype: Any) -> np.ndarray:
    """Zeros in host memory that kernels reach and that copies need not wait for."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    out = np.frombuffer(cupy.cuda.alloc_pinned_memory(max(size, 1)), dtype, int(np.prod(shape))).reshape(shape)
    out[...] = 0
    return out


class Event:
    """The end of what a stream has been given so far. An `exchange.interface.Flight`."""

    stage = ""

    def __init__(self, stream: cupy.cuda.Stream) -> None:
        self._event = cupy.cuda.Event(disable_timing=True)
        self._event.record(stream)

    def test(self) -> bool:
        """See `Flight`."""
        return self._event.done

    def wait(self) -> None:
        """See `Flight`."""
        self._event.synchronize()

    def hold(self, stream: cupy.cuda.Stream) -> None:
        """What `stream` is given from now on begins behind it."""
        stream.wait_event(self._event)


class Mirror:
    """Values of the host that kernels of one stream need: a pinned array, and its copy on the device."""

    def __init__(self, dtype: Any, room: int = 0) -> None:
        """Up to `room` values always lie at the same place."""
        self._host, self._there = pinned(room, dtype), cupy.empty(room, dtype)
        self._sent: Event | None = None

    def send(self, values: np.ndarray) -> cupy.ndarray:
        """`values`, `[n]`, on the device, in the order of the current stream; valid until the next call."""
        if self._sent:
            self._sent.wait()  # the last copy may still read the host's side
        if len(values) > len(self._host):
            cupy.cuda.get_current_stream().synchronize()  # kernels may still read what is about to be freed
            room = max(len(values), 2 * len(self._host))
            self._host, self._there = pinned(room, self._host.dtype), cupy.empty(room, self._host.dtype)
        self._host[:len(values)] = values
        out = self._there[:len(values)]
        if len(values):
            stream = cupy.cuda.get_current_stream()
            cupy.cuda.runtime.memcpyAsync(out.data.ptr, self._host.ctypes.data, out.nbytes,
                                          cupy.cuda.runtime.memcpyHostToDevice, stream.ptr)
            self._sent = Event(stream)
        return out


def to_host(values: cupy.ndarray) -> np.ndarray:
    """A copy that is there when the current stream comes to its end."""
    out = pinned(values.shape, values.dtype)
    if values.size:
        cupy.cuda.runtime.memcpyAsync(out.ctypes.data, values.data.ptr, values.nbytes,
                                      cupy.cuda.runtime.memcpyDeviceToHost, cupy.cuda.get_current_stream().ptr)
    return out
