"""What all our HDF5 files have in common: how they are opened, marked, and put in place."""

import datetime
import os
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np

from hpcmoe import __version__
from hpcmoe.errors import InputError, JobError

VERSION = 1
"""`format_version` of every layout; a reader refuses a newer one."""


@contextmanager
def reading(path: Path, layout: str | None = None) -> Iterator[h5py.File]:
    """`path` open for reading, checked to be of `layout` ("model", "prompts", "results"). Raises `InputError`.

    No file lock is taken: many ranks read one file, and some parallel file systems have no locks.
    """
    what = f"{layout} file" if layout else "file"
    if not path.exists():
        raise InputError(f"{what} {path} does not exist")
    if path.is_dir():
        raise InputError(f"{what} {path} is a folder, not an HDF5 file")
    try:
        file = h5py.File(path, "r", locking=False)
    except PermissionError:
        raise InputError(f"{what} {path} may not be read: permission denied") from None
    except OSError as error:
        raise InputError(f"{what} {path} {_broken(error)}") from None
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
    mark = str(file.attrs.get("format", ""))
    if not mark.startswith("hpcmoe-"):
        raise InputError(f"{path} is HDF5 but not a file of hpcmoe's (no attribute `format`)")
    if layout and mark != f"hpcmoe-{layout}":
        raise InputError(f"{path} is a {mark.removeprefix('hpcmoe-')} file where a {layout} file is expected")
    version = int(file.attrs.get("format_version", 0))
    if version > VERSION:
        raise InputError(f"{path} has format version {version}, this hpcmoe reads up to {VERSION}: update hpcmoe")


@contextmanager
def writing(path: Path, layout: str) -> Iterator[h5py.File]:
    """A new file that appears under `path` when the block ends well, whole and on disk; else nothing does.

    Raises `JobError` where the folder cannot be written.
    """
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = h5py.File(unfinished, "w", locking=False)
    except OSError as error:
        raise JobError(f"{path} cannot be written: {error.strerror or error}") from None
    try:
        with file:
            mark(file, layout)
            yield file
        sync(unfinished)
        unfinished.replace(path)
        sync(path.parent)
    finally:
        unfinished.unlink(missing_ok=True)


def mark(file: h5py.File, layout: str) -> None:
    """The attributes that every file of ours has."""
    now = datetime.datetime.now(datetime.UTC)
    file.attrs.update(format=f"hpcmoe-{layout}", format_version=VERSION, creator=f"hpcmoe {__version__}",
                      created=now.isoformat(timespec="seconds"), uuid=str(uuid.uuid4()))


def sync(path: Path) -> None:
    """Waits until `path`, a file or a folder, is on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


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
    """A dataset `[len(data)]` of UTF-8 strings of any length; `data` may be empty."""
    return put(group, name, np.array(list(data), dtype=object), note, dtype=h5py.string_dtype())


def put_ragged(group: h5py.Group, name: str, lists: Sequence[np.ndarray], dtype: str, note: str) -> None:
    """Lists of any lengths as `NAME/data` with `NAME/offsets` int64 `[len(lists) + 1]`."""
    offsets = np.zeros(len(lists) + 1, np.int64)
    np.cumsum([len(part) for part in lists], out=offsets[1:])
    data = np.concatenate([np.asarray(part, dtype) for part in lists]) if lists else np.empty(0, dtype)
    put(group, f"{name}/data", data, note)
    put(group, f"{name}/offsets", offsets, f"where each list of {name} begins in data; the last entry is the end")


def ragged(group: h5py.Group, name: str, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """`NAME/data` and `NAME/offsets`, checked against each other. Raises `InputError`."""
    data, offsets = take(group, f"{name}/data", path), take(group, f"{name}/offsets", path)
    steps = np.diff(offsets)
    if offsets.ndim != 1 or not len(offsets) or offsets[0] != 0 or (steps < 0).any() or offsets[-1] != len(data):
        raise InputError(f"{path}: {name}/offsets do not fit {name}/data: make the file again")
    return data, offsets


def take(group: h5py.Group, name: str, path: Path) -> np.ndarray:
    """The whole dataset `name`. Raises `InputError` where it is missing or unreadable."""
    try:
        dataset = group[name]
        return dataset[()]
    except KeyError:
        raise InputError(f"{path} has no dataset {name}") from None
    except OSError as error:
        raise InputError(f"{path}: dataset {name} cannot be read ({error}): make the file again") from None


def strings(group: h5py.Group, name: str, path: Path) -> list[str]:
    """A dataset of strings. Raises `InputError`."""
    values = take(group, name, path)
    return [v.decode() if isinstance(v, bytes) else str(v) for v in values]
