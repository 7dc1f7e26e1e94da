"""What all our HDF5 files have in common: how they are opened, marked, and put in place."""

import datetime
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import h5py
import numpy as np

from hpcmoe import __version__, paths
from hpcmoe.errors import InputError
from hpcmoe.files import place
from hpcmoe.files.disk import Disk

T = TypeVar("T", int, str)

VERSION = 1
"""`format_version` of every layout; a reader refuses a newer one."""
NEWER = ": update hpcmoe"
"""How an error ends that says so."""
OURS = "hpcmoe-"
"""How the attribute `format` of our files begins; the layout follows."""
KINDS = {np.integer: "whole numbers", np.floating: "floating-point numbers", str: "strings"}
"""What a dataset may be asked to hold."""


class Damaged(InputError):
    """A file that was cut off, or whose content is not what its writer put there."""


@contextmanager
def reading(path: Path, layout: str | None = None) -> Iterator[h5py.File]:
    """`path` open for reading, checked to be of `layout` ("model", "prompts", "results"). Raises `InputError`,
    `Damaged` where it is no whole HDF5 file.

    No file lock is taken: many ranks read one file, and some parallel file systems have no locks.
    """
    what = f"{layout} file" if layout else "file"
    try:
        path.open("rb").close()  # HDF5 has one error for all that this one tells apart
    except OSError as error:
        raise InputError(f"{what} {path} {paths.unreadable(error)}") from None
    try:
        file = h5py.File(path, "r", locking=False)
    except OSError as error:
        raise Damaged(f"{what} {path} {_broken(error)}") from None
    with file:
        check_marks(file, path, layout)
        yield file


def _broken(error: OSError) -> str:
    text = str(error)
    if "truncated file" in text:
        return "is truncated: copy or make it again"
    if "file signature not found" in text:
        return "is not an HDF5 file"
    return f"cannot be opened: {text}"


def check_marks(file: h5py.File, path: Path, layout: str | None) -> None:
    """Raises `InputError` where `file` is not one of ours, of another layout, or newer than this program."""
    if not str(file.attrs.get("format", "")).startswith(OURS):
        raise InputError(f"{path} is HDF5 but not a file of hpcmoe's (no attribute `format`)")
    if layout and layout_of(file) != layout:
        raise InputError(f"{path} is a {layout_of(file)} file where a {layout} file is expected")
    version = attribute(file, "format_version", path, int)
    if version > VERSION:
        raise InputError(f"{path} has format version {version}, this hpcmoe reads up to {VERSION}{NEWER}")


def layout_of(file: h5py.File) -> str:
    """The layout of one of our files, as it says itself."""
    return str(file.attrs["format"]).removeprefix(OURS)


class NewFile(h5py.File):
    """A file that is being written."""

    def __init__(self, disk: Disk, path: Path) -> None:
        super().__init__(disk, "w")
        self._disk, self._path = disk, path

    def check(self) -> None:
        """Raises `JobError` where what was written so far could not be: before long work goes on for nothing."""
        if self._disk.failure:
            raise place.unwritable(self._path, self._disk.failure)


@contextmanager
def writing(path: Path, layout: str) -> Iterator[NewFile]:
    """A new file that appears under `path` when the block ends well, whole and on disk; else nothing does.

    Raises `JobError` where it cannot be written: no such folder, no permission, a full disk, a quota.
    """
    unfinished = place.unfinished(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        disk = Disk(unfinished)
    except OSError as error:
        raise place.unwritable(path, error) from None
    stumbled: Exception | None = None
    try:
        try:
            with NewFile(disk, path) as file:
                mark(file, layout)
                yield file
        except Exception as error:
            if not disk.failure:  # else HDF5 stumbled over what was not written
                raise
            stumbled = error
        finally:
            disk.close()
        if disk.failure:
            raise place.unwritable(path, disk.failure) from stumbled
        place.put(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def mark(file: h5py.File, layout: str) -> None:
    """The attributes that every file of ours has."""
    now = datetime.datetime.now(datetime.UTC)
    file.attrs.update(format=OURS + layout, format_version=VERSION, creator=f"hpcmoe {__version__}",
                      created=now.isoformat(timespec="seconds"), uuid=str(uuid.uuid4()))


def put(group: h5py.Group, name: str, data: np.ndarray | Sequence[str], note: str, **options) -> h5py.Dataset:
    """A dataset with its `long_name`; `note` may end in a unit, as "seconds of a step [s]"."""
    if len(data) and isinstance(data[0], str):
        options["dtype"] = h5py.string_dtype()
    dataset = group.create_dataset(name, data=data, **options)
    long_name, _, unit = note.partition(" [")
    dataset.attrs["long_name"] = long_name
    dataset.attrs["units"] = unit.removesuffix("]") or "1"
    return dataset


def put_strings(group: h5py.Group, name: str, data: Sequence[str], note: str) -> h5py.Dataset:
    """A dataset `[len(data)]` of UTF-8 strings of any length; `data` may be empty.

    HDF5 ends a string at its first zero byte, and h5py refuses it: a model that says one must not lose the run.
    """
    kept = [text.replace("\0", "\ufffd") for text in data]
    return put(group, name, np.array(kept, dtype=object), note, dtype=h5py.string_dtype())


def put_ragged(group: h5py.Group, name: str, lists: Sequence[np.ndarray], dtype: str, note: str) -> None:
    """Lists of any lengths as `NAME/data` with `NAME/offsets` int64 `[len(lists) + 1]`."""
    offsets = np.zeros(len(lists) + 1, np.int64)
    np.cumsum([len(part) for part in lists], out=offsets[1:])
    data = np.concatenate([np.asarray(part, dtype) for part in lists]) if lists else np.empty(0, dtype)
    put(group, f"{name}/data", data, note)
    put(group, f"{name}/offsets", offsets, f"where each list of {name} begins in data; the last entry is the end")


def ragged(group: h5py.Group, name: str, path: Path, kind: type = np.integer) -> tuple[np.ndarray, np.ndarray]:
    """`NAME/data` `[n]` of `kind` and `NAME/offsets` int64, checked against each other. Raises `InputError`."""
    data = take(group, f"{name}/data", path, kind, 1)
    offsets = take(group, f"{name}/offsets", path, np.integer, 1).astype(np.int64)
    if not len(offsets) or offsets[0] != 0 or (np.diff(offsets) < 0).any() or offsets[-1] != len(data):
        raise InputError(f"{path}: {name}/offsets do not fit {name}/data: make the file again")
    return data, offsets


def take(group: h5py.Group, name: str, path: Path, kind: type | None = None, dims: int | None = None) -> np.ndarray:
    """The whole dataset `name`, checked to be of `kind` (see `KINDS`) and of `dims` dimensions where they are given.

    Raises `InputError` where it is missing, unreadable, or something else.
    """
    try:
        dataset = group[name]
        if not isinstance(dataset, h5py.Dataset):
            raise InputError(f"{path}: {name} is not a dataset: make the file again")
        if kind is not None and not _is(dataset.dtype, kind):
            raise InputError(f"{path}: {name} is {dataset.dtype}, not {KINDS[kind]}: make the file again")
        if dataset.shape is None:
            raise InputError(f"{path}: {name} is empty: make the file again")
        if dims is not None and dataset.ndim != dims:
            raise InputError(f"{path}: {name} has {dataset.ndim} dimensions, not {dims}: make the file again")
        return dataset[()]
    except KeyError:
        raise InputError(f"{path} has no dataset {name}") from None
    except OSError as error:
        raise InputError(f"{path}: dataset {name} cannot be read ({error}): make the file again") from None


def _is(dtype: np.dtype, kind: type) -> bool:
    return h5py.check_string_dtype(dtype) is not None if kind is str else np.issubdtype(dtype, kind)


def strings(group: h5py.Group, name: str, path: Path, count: int | None = None) -> list[str]:
    """A dataset of strings, `count` of them where it is given. Raises `InputError`."""
    values = take(group, name, path, str, 1)
    if count is not None and len(values) != count:
        raise InputError(f"{path}: {name} has {len(values)} entries, not {count}: make the file again")
    return [_decoded(value, name, path) for value in values]


def string(group: h5py.Group, name: str, path: Path) -> str:
    """A dataset that is one string. Raises `InputError`."""
    return _decoded(take(group, name, path, str, 0), name, path)


def _decoded(value: Any, name: str, path: Path) -> str:
    try:
        return bytes(value).decode()
    except UnicodeDecodeError:
        raise InputError(f"{path}: {name} is not UTF-8: make the file again") from None


def attribute(group: h5py.Group, name: str, path: Path, kind: type[T]) -> T:
    """The attribute `name`, an int or a str. Raises `InputError` where it is missing or something else."""
    value = group.attrs.get(name)
    if not isinstance(value, np.integer if kind is int else str):
        words = "a whole number" if kind is int else "a string"
        raise InputError(f"{path}: attribute {name} is missing or not {words}: make the file again")
    return kind(value)
