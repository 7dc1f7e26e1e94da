"""model.h5: the spec as TOML, the tokenizer's JSON, and one dataset per tensor of `spec.tensors`.

    /                     attributes: spec (TOML), dtype; datasets tokenizer and chat (JSON, may be absent)
    /embedding            [V, H]
    /layers/007/gate      [E, H]      and so on; experts/012/{gate_up, down} are datasets of their own,
    /norm, /head                      so that a rank reads only its share

Matrices are `[out, in]`. bfloat16 is stored as uint16 with the attribute `dtype = "bfloat16"`.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import h5py
import numpy as np
from h5py import h5d, h5p, h5s, h5t

from hpcmoe import array, spec, spec_table, tables
from hpcmoe.errors import InputError
from hpcmoe.files import h5, staged, vet
from hpcmoe.files.staged import Staged
from hpcmoe.slots import Piece
from hpcmoe.spec import ModelSpec, Tensor

BLOCK = 1 << 22
"""Values in a block that is read or written at once."""
TEXTS = {"tokenizer": "tokenizer in the JSON of the tokenizers library",
         "chat": "chat template and the texts of its special tokens, JSON"}
CACHED = 1 << 18
"""Bytes that stay in a core's cache."""

STORED = {"bfloat16": h5t.STD_U16LE, "float32": h5t.IEEE_F32LE}
"""What HDF5 calls it."""

Same = Callable[[Tensor], str | None]
"""The name of a tensor before it that is the same, if one is"""
Empty = Callable[[tuple[int, ...], np.dtype], np.ndarray]
"""(shape, dtype) -> where a block may be read to"""


def apart(tensor: Tensor) -> None:
    """The `Same` of models in which no two tensors are."""


class Source(Protocol):
    """Where weights come from: a model file, a checkpoint of others, or a generator."""

    spec: ModelSpec
    tokenizer: str
    """The tokenizer's JSON, "" where there is none."""
    chat: str
    """A `files.chat.Chat` as JSON, "" where there is none."""

    def blocks(self, tensor: Tensor) -> Iterator[np.ndarray]:
        """`tensor` as float32 blocks of consecutive rows, `[rows, in]` (`[rows]` for a vector)."""
        ...


class ModelFile:
    """A model.h5, open for reading. A `Source`. Raises `InputError`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        vet.check(path, "model")  # its tensors, too
        with h5.reading(path, "model") as file:
            self.spec = read_spec(file, path)
            self.dtype = h5.attribute(file, "dtype", path, str)
            self.uuid = h5.attribute(file, "uuid", path, str)
            self.tokenizer, self.chat = (h5.string(file, name, path) if name in file else "" for name in TEXTS)

    def blocks(self, tensor: Tensor) -> Iterator[np.ndarray]:
        """See `Source`. Raises `InputError` at a value that is not finite."""
        with h5.reading(self.path, "model") as file:
            for block in stored_blocks(file, self.path, tensor):
                if not _finite(block):
                    raise not_finite(self.path, tensor)
                yield array.widen(block) if block.dtype == np.uint16 else block


def stored_blocks(file: h5py.File, path: Path, tensor: Tensor, empty: Empty = np.empty) -> Iterator[np.ndarray]:
    """`tensor` of the model file at `path` as it is stored, uint16 (bfloat16) or float32: blocks of consecutive rows.

    Each is read straight into what `empty(shape, dtype)` gives, without gaps. Raises `InputError` where it cannot be
    read. Nobody has looked yet whether its values are numbers.
    """
    dataset = file[tensor.name]
    for some in row_blocks(tensor, tensor.shape):
        block = empty((some.stop - some.start, *tensor.shape[1:]), dataset.dtype)
        try:
            dataset.read_direct(block, tensor.within(some) if isinstance(tensor, Piece) else some)
        except OSError as error:
            raise InputError(f"{path}: {tensor.name} cannot be read ({error}): copy or make the file again") from None
        yield block


def not_finite(path: Path, tensor: Tensor) -> InputError:
    """What is wrong with a tensor whose values are not all numbers."""
    return InputError(f"{path}: {tensor.name} has values that are NaN or infinite")


def _finite(block: np.ndarray) -> bool:
    """Whether no value is NaN or infinite. Their exponents are all ones: no bits of the same sign are larger.

    In pieces that stay in a core's cache between the two looks: every block that is read goes through here.
    """
    size = block.itemsize
    ones, sign = 0x7F80 << 8 * (size - 2), 1 << 8 * size - 1
    flat = block.reshape(-1).view(f"u{size}")
    for first in range(0, flat.size, CACHED // size):
        bits = flat[first:first + CACHED // size]
        if bits.max() >= sign + ones or bits.view(f"i{size}").max() >= ones:
            return False
    return True


def write(path: Path, source: Source, dtype: str, *, same: Same = apart,
          done: Callable[[Tensor], None] = lambda tensor: None) -> None:
    """All tensors of `source` as a model file of `dtype`, by this process alone; else nothing stays there.

    `done` is called after each tensor. Raises `JobError` where `path` cannot be written.
    """
    try:
        made = begin(path, source, dtype, same, {}, overwrite=True)
        assert made
        with staged.Writer(made) as writer:
            for tensor in spec.tensors(source.spec):
                if tensor.name in made.places:
                    writer.fill(tensor.name, as_stored(source, tensor, dtype))
                done(tensor)
            writer.commit()
        staged.finish(made)
    finally:
        with suppress(OSError):
            staged.clear(path)


def begin(path: Path, source: Source, dtype: str, same: Same, asked: Mapping[str, Any],
          overwrite: bool = False) -> Staged | None:
    """A model file of `dtype` for the tensors of `source`, to be filled: see `staged.begin`, which has `asked` and
    `overwrite`, too.

    Where `same(tensor)` names a tensor before it, `tensor` becomes a hard link to that, which takes no space.
    """
    needs = sum(t.values * STORED[stored_as(t, dtype)].get_size() for t in spec.tensors(source.spec) if not same(t))
    return staged.begin(path, "model", asked, lambda file: _lay_out(file, source, dtype, same), needs, overwrite)


def _lay_out(file: h5.NewFile, source: Source, dtype: str, same: Same) -> dict[str, tuple[int, int]]:
    file.attrs["spec"] = tables.dump(source.spec)
    file.attrs["dtype"] = dtype
    for name, note in TEXTS.items():
        if value := getattr(source, name):
            text = file.create_dataset(name, data=value, dtype=h5py.string_dtype())
            text.attrs.update(long_name=note, units="1")
    return {tensor.name: found for tensor in spec.tensors(source.spec)
            if (found := _room(file, tensor, dtype, same(tensor)))}


def _room(file: h5.NewFile, tensor: Tensor, dtype: str, first: str | None) -> tuple[int, int] | None:
    """Where the bytes of `tensor` go, which has room now; None where it is the same as `first`."""
    if first:
        file[tensor.name] = file[first]
        return None
    at, _, name = tensor.name.rpartition("/")
    group, kept = file.require_group(at) if at else file, stored_as(tensor, dtype)
    made = h5d.create(group.id, name.encode(), STORED[kept], h5s.create_simple(tensor.shape), in_one_piece())
    h5py.Dataset(made).attrs.update(long_name=f"weights of the {tensor.part}", units="1", dtype=kept)
    return made.get_offset(), made.get_storage_size()


def in_one_piece() -> h5p.PropDCID:
    """How a dataset is made whose bytes are written past HDF5: it has its place at once, and nothing is put there."""
    plan = h5p.create(h5p.DATASET_CREATE)
    plan.set_layout(h5d.CONTIGUOUS)
    plan.set_alloc_time(h5d.ALLOC_TIME_EARLY)
    plan.set_fill_time(h5d.FILL_TIME_NEVER)
    plan.set_obj_track_times(False)
    return plan


def stored_as(tensor: Tensor, dtype: str) -> str:
    """The dtype of `tensor` in a file of `dtype`."""
    return "float32" if tensor.exact else dtype


def as_stored(source: Source, tensor: Tensor, dtype: str) -> Iterator[np.ndarray]:
    """Blocks of a tensor as they lie in a file of `dtype`."""
    half = stored_as(tensor, dtype) == "bfloat16"
    for block in source.blocks(tensor):
        yield array.narrow(block).astype("<u2", copy=False) if half else block.astype("<f4", copy=False)


def row_blocks(tensor: Tensor, shape: tuple[int, ...]) -> Iterator[slice]:
    """The rows of a tensor, or of its whole those that a `Piece` has, in blocks of about `BLOCK` values; `shape` is
    that of what is read."""
    step = rows_per_block(shape)
    for first, end in tensor.rows if isinstance(tensor, Piece) else ((0, tensor.shape[0]),):
        for row in range(first, end, step):
            yield slice(row, min(row + step, end))


def rows_per_block(shape: tuple[int, ...]) -> int:
    """Rows of a tensor of `shape` that make about `BLOCK` values."""
    return max(1, BLOCK // (shape[1] if len(shape) > 1 else 1))


def read_spec(file: h5py.File, path: Path) -> ModelSpec:
    """The spec in a model file. Raises `InputError`."""
    try:
        table = tables.parse(h5.attribute(file, "spec", path, str))
    except tables.Bad as error:
        raise InputError(f"{path}: attribute spec is malformed ({error})") from None
    return spec_table.from_named_table(table, f"{path}: spec", InputError)


def check_tensors(found: Iterable[tuple[Tensor, tuple[int, ...], np.dtype]], path: Path) -> None:
    """Raises `InputError` where a tensor cannot be as it is in the file at `path`: with this shape and dtype."""
    for tensor, shape, dtype in found:
        if shape != tensor.shape:
            raise InputError(f"{path}: tensor {tensor.name} has shape {shape}, the spec says {tensor.shape}")
        if dtype not in (np.uint16, np.float32):
            raise InputError(f"{path}: tensor {tensor.name} is {dtype}, not float32 or bfloat16 (uint16)")
