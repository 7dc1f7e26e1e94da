"""Tensors as safetensors files hold them: where each lies, and its rows as float32, dequantised where they need it.

Rows are read as they are asked for, by plain reads: a checkpoint of hundreds of gigabytes takes no more memory than a
block, and no more open files than one.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path

import ml_dtypes
import numpy as np

from hpcmoe.convert.parts import checked
from hpcmoe.errors import InputError, JobError
from hpcmoe.files.model import rows_per_block
from hpcmoe.paths import unreadable

DTYPES = {"BF16": np.dtype(ml_dtypes.bfloat16), "F16": np.dtype(np.float16), "F32": np.dtype(np.float32)}
"""The number formats that are read as they are."""
FLOAT8, BYTES = np.dtype(ml_dtypes.float8_e4m3fn), np.dtype(np.uint8)
FOUR_BITS = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
"""What 4 bits of MXFP4 mean: E2M1 (Open Compute Project, "Microscaling formats", 2023, section 5.3.3)."""


@dataclass(frozen=True)
class Stored:
    """A tensor in a file."""

    name: str
    path: Path
    kind: str
    """its dtype, as safetensors calls it"""
    shape: tuple[int, ...]
    offset: int
    """bytes from the file's beginning"""

    def raw(self, dtype: np.dtype, expert: int | None, first: int, count: int) -> np.ndarray:
        """`count` rows from `first`, of an `expert`'s where the first dimension is theirs. Raises `InputError`."""
        shape = self.shape if expert is None else self.shape[1:]
        row = prod(shape[1:])
        at = (first + (expert or 0) * shape[0]) * row
        try:
            values = np.fromfile(self.path, dtype, count * row, offset=self.offset + at * dtype.itemsize)
        except OSError as error:
            raise InputError(f"{self.path} {unreadable(error)}") from None
        if len(values) != count * row:
            raise InputError(f"{self.path} is shorter than its header says: copy it again")
        return values.reshape(count, *shape[1:])


@dataclass(frozen=True)
class Part:
    """A tensor of theirs, or one expert's share of it, as a matrix or vector."""

    values: Stored
    scales: Stored | None = None
    """of quantised values"""
    block: tuple[int, int] = (1, 1)
    """rows and columns of a block of float8 values, which share a scale"""
    expert: int | None = None
    turned: bool = False
    """whether it is stored as `[in, out]`"""

    @property
    def stored(self) -> tuple[int, ...]:
        """Its shape as it is stored, without that of experts, and with four bits as values."""
        shape = self.values.shape[0 if self.expert is None else 1:]
        return (*shape[:-2], shape[-2] * 2 * shape[-1]) if self.values.kind == "U8" else shape

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape as `[out, in]`."""
        return self.stored[::-1] if self.turned else self.stored

    def blocks(self) -> Iterator[np.ndarray]:
        """Blocks of rows as float32, whole where it is turned. Raises `InputError`."""
        step = self.stored[0] if self.turned else rows_per_block(self.stored)
        for first in range(0, self.stored[0], step):
            block = checked(self._rows(first, min(step, self.stored[0] - first)), self.values.name, self.values.path)
            yield np.ascontiguousarray(block.T) if self.turned else block

    def _rows(self, first: int, count: int) -> np.ndarray:
        if self.scales is None:
            return self.values.raw(DTYPES[self.values.kind], self.expert, first, count)
        if self.values.kind == "U8":
            return _four_bits(self.values.raw(BYTES, self.expert, first, count),
                              self.scales.raw(BYTES, self.expert, first, count))
        return self._eight_bits(first, count)

    def _eight_bits(self, first: int, count: int) -> np.ndarray:
        """float8 values times the scale of their block (DeepSeek-AI, "DeepSeek-V3", 2024, section 3.3.1)."""
        assert self.scales is not None
        high, wide = self.block
        values = self.values.raw(FLOAT8, self.expert, first, count).astype(np.float32)
        before, behind = first // high, -(-(first + count) // high)
        scales = self.scales.raw(DTYPES[self.scales.kind], self.expert, before, behind - before).astype(np.float32)
        row = np.arange(first, first + count) // high - before
        values *= np.repeat(scales, wide, axis=1)[row, :values.shape[1]]
        return values


def _four_bits(blocks: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Pairs of 4 bits `[rows, n, 16]`, the lower ones first, times powers of 2 `[rows, n]` biased by 127 ->
    `[rows, 32 n]` float32 (MXFP4)."""
    values = np.empty((*blocks.shape, 2), np.float32)
    values[..., 0], values[..., 1] = FOUR_BITS[blocks & 15], FOUR_BITS[blocks >> 4]
    with np.errstate(over="ignore", invalid="ignore"):  # 255 is no number, and told so by who reads it
        factor = np.ldexp(np.float32(1), scales.astype(np.int32) - 127)
        return (values.reshape(*scales.shape, 32) * factor[..., None]).reshape(len(blocks), -1)


def open_all(paths: Iterable[Path]) -> dict[str, Stored]:
    """Tensor name -> where it lies, of safetensors files. Raises `InputError` where one is not whole."""
    try:
        from safetensors import SafetensorError, safe_open
    except ModuleNotFoundError:
        raise JobError("Hugging Face checkpoints need the safetensors package: pip install 'hpcmoe[convert]'") from None
    found: dict[str, Stored] = {}
    for path in paths:
        try:
            with safe_open(path, framework="numpy"):  # checks the header against the file
                pass
            found |= _header(path)
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path} is not a whole safetensors file ({error})") from None
    return found


def _header(path: Path) -> dict[str, Stored]:
    """What the header says, which has been checked."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        table = json.loads(file.read(size))
    table.pop("__metadata__", None)
    return {name: Stored(name, path, entry["dtype"], tuple(entry["shape"]), 8 + size + entry["data_offsets"][0])
            for name, entry in table.items()}
