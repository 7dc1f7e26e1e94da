"""What the child of `files.vet` looks at: a file is whole in itself, and reading it takes no more than it holds.

Nothing may lead out of the file: no external links, no external storage, no virtual datasets. What lies in one piece is
checked by its place; what HDF5 unpacks (chunks, filters, strings) is unpacked, in pieces, and its bytes are counted.
Of a model's tensors, which may be hundreds of GB, only the description is read: they must lie in one piece.
"""

import zlib
from collections.abc import Iterator
from contextlib import suppress
from math import prod
from pathlib import Path

import h5py
import numpy as np
from h5py import h5a, h5d, h5g, h5l, h5o, h5z

from hpcmoe import child, spec
from hpcmoe.errors import InputError, size
from hpcmoe.files import h5
from hpcmoe.spec import Tensor

UNPACKED = 64 << 20
"""Bytes that a file may unpack to, whatever its size,"""
MORE = 32
"""and so many times its own beside them."""
MOST, DEEPEST = 1 << 18, 16
"""Links of a file that is no model, and groups in one another."""
ATTRIBUTES = 1000
STRING = 64
"""Bytes that a string takes beside its own."""
PIECE = 4 << 20
"""Bytes that are unpacked at once, about; and strings that are: a file may name one long one again and again."""
STRINGS = 256
FILTERS = {h5z.FILTER_DEFLATE, h5z.FILTER_SHUFFLE, h5z.FILTER_FLETCHER32}
CHECKSUM = 4
"""Bytes that fletcher32 adds to a chunk."""


def examine(path: Path, layout: str) -> None:
    """Raises `InputError` where the file is none that can safely be read; others where HDF5 cannot make sense of it."""
    with h5.reading(path, layout or None) as file:
        room = Room(path)
        for name in _attributes(file, path):
            room.unpack(name, _bytes(np.asarray(file.attrs[name])))
        if h5.layout_of(file) == "model":
            from hpcmoe.files.model import TEXTS, check_tensors, read_spec
            for name in TEXTS.keys() & set(file):
                _look(_opened(file, name, path), name, room)
            check_tensors(_tensors(file, path, spec.tensors(read_spec(file, path)), room), path)
        else:
            for name, found in _objects(file, path):
                _look(found, name, room)


class Room:
    """What a file may take."""

    def __init__(self, path: Path) -> None:
        self.path, self.bytes = path, path.stat().st_size
        self.stored, self.unpacked = 0, 0

    def store(self, name: str, offset: int, count: int) -> None:
        """Bytes that lie in the file as they are."""
        self.stored += count
        if offset + count > self.bytes or self.stored > self.bytes:
            raise InputError(f"{self.path}: {name} is larger than the file: copy or make it again")

    def unpack(self, name: str, count: int) -> None:
        """Bytes that are made of what is in the file."""
        self.unpacked += count
        if self.unpacked > UNPACKED + MORE * self.bytes:
            raise InputError(f"{self.path}: {name} unpacks to {size(self.unpacked)} or more, from a file of "
                             f"{size(self.bytes)}: store it without compression")


def _attributes(file: h5py.File, path: Path) -> list[str]:
    if h5a.get_num_attrs(file.id) > ATTRIBUTES:
        raise InputError(f"{path} has over {ATTRIBUTES} attributes: make it again")
    return list(file.attrs)


def _objects(file: h5py.File, path: Path) -> Iterator[tuple[str, h5d.DatasetID]]:
    """Every dataset, each once. Raises `InputError` at a link that leads elsewhere."""
    seen: set[tuple[int, int]] = set()
    links = 0
    waiting: list[tuple[h5g.GroupID, str, int]] = [(h5o.open(file.id, b"/"), "", 0)]
    while waiting:
        group, at, depth = waiting.pop()
        found: list[tuple[bytes, int]] = []
        group.links.iterate(lambda name, info: found.append((name, info.type)), info=True)  # noqa: B023  # used at once
        links += len(found)
        if links > MOST or depth > DEEPEST:
            raise InputError(f"{path} has over {MOST} links, or groups over {DEEPEST} deep: make it again")
        for link, kind in found:
            name = f"{at}{link.decode(errors='replace')}"
            if kind == h5l.TYPE_SOFT:
                with suppress(KeyError):  # to nowhere; else to a place in this file, which its own link leads to
                    h5o.open(group, link)
                continue
            if kind != h5l.TYPE_HARD:
                raise _elsewhere(path, name, "is a link to another file")
            one = h5o.open(group, link)
            if not _is_new(one, seen):
                continue
            if isinstance(one, h5g.GroupID):
                waiting.append((one, f"{name}/", depth + 1))
            elif isinstance(one, h5d.DatasetID):
                yield name, one


def _is_new(found, seen: set[tuple[int, int]]) -> bool:
    info = h5o.get_info(found)
    place = info.fileno, info.addr
    new = place not in seen
    seen.add(place)
    return new


def _opened(file: h5py.File, name: str, path: Path):
    """What has that name, in this very file. Raises `InputError`; `KeyError` where there is nothing."""
    found = h5o.open(file.id, name.encode())
    if h5o.get_info(found).fileno != h5o.get_info(file.id).fileno:
        raise _elsewhere(path, name, "is a link to another file")
    return found


def _elsewhere(path: Path, name: str, why: str) -> InputError:
    return InputError(f"{path}: {name} {why}, which is not followed: put all into one file")


def _look(dataset: h5d.DatasetID, name: str, room: Room) -> None:
    """One dataset. Raises `InputError`."""
    if not isinstance(dataset, h5d.DatasetID):
        return  # whoever needs one here says so
    values = h5py.Dataset(dataset)
    dtype, shape = values.dtype, values.shape
    offset = _check_layout(dataset, name, room.path)
    string = h5py.check_string_dtype(dtype)
    if shape is None or (string is None and dtype.kind not in "iuf"):
        return  # empty, or nothing that is ever read
    count = prod(shape)
    if not count:
        return
    if offset is not None and not (string and string.length is None):
        room.store(name, offset, count * dtype.itemsize)
        return
    room.unpack(name, count * (STRING if string else dtype.itemsize))
    _check_chunks(dataset, name, room.path)
    for piece in _pieces(shape, STRINGS if string else max(1, PIECE // dtype.itemsize)):
        found = values[piece]
        if string:
            room.unpack(name, _bytes(np.asarray(found)))


def _check_layout(dataset: h5d.DatasetID, name: str, path: Path) -> int | None:
    """Where it lies in the file; None where it is not there in one piece. Raises `InputError`."""
    plan = dataset.get_create_plist()
    if plan.get_layout() == h5d.VIRTUAL:
        raise _elsewhere(path, name, "is put together from other files")
    if plan.get_external_count():
        raise _elsewhere(path, name, "is stored in another file")
    for number in range(plan.get_nfilters()):
        code, _, _, label = plan.get_filter(number)
        if code not in FILTERS:
            raise InputError(f"{path}: {name} is packed by {label.decode(errors='replace') or code}; gzip, shuffle "
                             "and fletcher32 are read: h5repack -f GZIP=4 packs it so")
    if plan.get_layout() == h5d.CHUNKED:
        bytes_of_chunk = prod(plan.get_chunk()) * dataset.get_type().get_size()
        if bytes_of_chunk > UNPACKED:
            raise InputError(f"{path}: {name} has chunks of {size(bytes_of_chunk)}; up to {size(UNPACKED)} are read")
    return dataset.get_offset() if plan.get_layout() == h5d.CONTIGUOUS else None


def _check_chunks(dataset: h5d.DatasetID, name: str, path: Path) -> None:
    """Raises `InputError` where a chunk does not unpack to its size: HDF5 reads on behind a smaller one."""
    plan = dataset.get_create_plist()
    places: list[tuple[int, ...]] = []
    filters = [plan.get_filter(number)[0] for number in range(plan.get_nfilters())]
    if not filters:
        return
    due = prod(plan.get_chunk()) * dataset.get_type().get_size()
    dataset.chunk_iter(lambda chunk: places.append(chunk.chunk_offset))  # type: ignore[func-returns-value]
    for place in places:
        skipped, packed = dataset.read_direct_chunk(place)
        found = _unpacked(packed, [code for n, code in enumerate(filters) if not skipped >> n & 1], due)
        if found != due:
            raise InputError(f"{path}: {name} has a chunk that unpacks to {found} bytes, and {due} are due: make it "
                             "again")


def _unpacked(packed: bytes, filters: list[int], due: int) -> int:
    """Bytes that a chunk unpacks to, or one more than are `due` where it is more; 0 where it does not. Of filters that
    were applied in this order."""
    length = len(packed)
    for code in reversed(filters):
        if code == h5z.FILTER_FLETCHER32:
            length -= CHECKSUM
            packed = packed[:max(length, 0)]
        elif code == h5z.FILTER_DEFLATE:
            try:
                packed = zlib.decompressobj().decompress(packed, due + CHECKSUM + 1)
            except zlib.error:
                return 0
            length = len(packed)
    return min(length, due + 1)


def _pieces(shape: tuple[int, ...], most: int) -> Iterator[tuple]:
    """Places in an array of `shape` that have about `most` values each, or one row."""
    if not shape:
        yield ()
        return
    step = max(1, most // max(1, prod(shape[1:])))
    for first in range(0, shape[0], step):
        yield (slice(first, first + step),)


def _bytes(values: np.ndarray) -> int:
    if values.dtype.kind != "O":
        return values.nbytes
    return sum(len(v) if isinstance(v, (bytes, str)) else STRING for v in values.ravel())


def _tensors(file: h5py.File, path: Path, wanted: Iterator[Tensor],
             room: Room) -> Iterator[tuple[Tensor, tuple[int, ...], np.dtype]]:
    """Each of `wanted` with its shape and dtype as they are. Raises `InputError` where it does not lie in one piece."""
    seen: set[tuple[int, int]] = set()
    for tensor in wanted:
        try:
            dataset = _opened(file, tensor.name, path)
        except KeyError:
            dataset = None
        if not isinstance(dataset, h5d.DatasetID):
            raise InputError(f"{path}: tensor {tensor.name} is missing")
        shape, dtype = dataset.shape, dataset.dtype
        yield tensor, shape, dtype
        offset = _check_layout(dataset, tensor.name, path)
        if offset is None:
            raise InputError(f"{path}: {tensor.name} does not lie in one piece: h5repack -l CONTI -f NONE puts it so")
        if _is_new(dataset, seen):
            room.store(tensor.name, offset, prod(shape) * dtype.itemsize)


if __name__ == "__main__":
    child.serve(examine)
