"""An HDF5 file that any number of processes fill together, and that others go on with after any end of theirs.

    model.h5.unfinished/plan       JSON: what is made, and where each dataset's bytes go
    model.h5.unfinished/contents   the file as it is going to be, but for its first bytes and those of the datasets
    model.h5.unfinished/done-3     what process 3 has filled: a line for each dataset, behind its bytes

HDF5 makes the file once, with all groups and attributes, and room for each dataset in one piece; nothing of HDF5's is
touched again. Bytes are then written in their places. A line says that a dataset is filled, and is written when its
bytes are on disk: after a crash, of the machine too, a dataset without a line is filled again, and nothing else. Until
all are filled the file lacks HDF5's signature: no reader takes it for a whole one, wherever it is moved. The plan is
written last; without one there is nothing to go on with.
"""

import json
import os
import shutil
import time
import zlib
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hpcmoe.errors import InputError, JobError, size
from hpcmoe.files import h5, place

SIGNATURE, INSTEAD = b"\x89HDF\r\n\x1a\n", b"\x89unfin\x1a\n"
"""How an HDF5 file begins, and how one does that is not filled yet."""
OURS = ("plan", "contents", "done-*", ".plan.*.tmp", ".contents.*.tmp")
"""All that is ever written in the folder."""
BATCH, EVERY = 1 << 30, 10.0
"""Bytes, or seconds, after which what was filled is brought to disk and noted."""

LayOut = Callable[[h5.NewFile], dict[str, tuple[int, int]]]
"""Makes all datasets in a new file, and says where the bytes of each go: its name -> offset in the file and count."""


@dataclass(frozen=True)
class Staged:
    """A file in the making. The same on all ranks."""

    output: Path
    """what it is going to be"""
    uuid: str
    places: Mapping[str, tuple[int, int]]
    """the datasets to fill: offset in the file, and bytes"""
    done: frozenset[str] = field(default=frozenset())
    """those that were filled when this process began"""

    @property
    def total(self) -> int:
        """Bytes of all datasets."""
        return sum(count for _, count in self.places.values())

    @property
    def before(self) -> int:
        """Bytes of those that are `done`."""
        return sum(self.places[name][1] for name in self.done)


def folder(output: Path) -> Path:
    """Where a file lies that is going to be `output`."""
    return output.with_name(output.name + ".unfinished")


def contents(output: Path) -> Path:
    """The file itself in it."""
    return folder(output) / "contents"


def begin(output: Path, layout: str, asked: Mapping[str, Any], lay_out: LayOut, needs: int,
          overwrite: bool = False) -> Staged | None:
    """Makes the file, or goes on with the one that is there; None where it was complete and has its name now.

    `asked` says what is made, in what JSON holds; its datasets have `needs` bytes. Raises `JobError` where what is
    there was asked for differently, unless `overwrite` throws it away, where it is damaged, and where the disk has no
    room.
    """
    try:
        found = None if overwrite else _look(output, asked)
        if not found:
            return _create(output, layout, asked, lay_out, needs)
        if not contents(output).exists():
            clear(output)
            return None
        there = contents(output).stat()
        _check_room(output, there.st_size - 512 * there.st_blocks)
        return found
    except OSError as error:
        raise place.unwritable(output, error) from None


def _look(output: Path, asked: Mapping[str, Any]) -> Staged | None:
    """What was begun at `output`; None for nothing."""
    plan, again = folder(output) / "plan", "--overwrite begins anew"
    try:
        table = json.loads(plan.read_text(encoding="utf-8"))
        there, held = dict(table["asked"]), table["bytes"]
        found = Staged(output, table["uuid"], {name: (at, count) for name, (at, count) in table["places"].items()})
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, LookupError, AttributeError):
        raise JobError(f"{plan} is damaged: {again}") from None
    differ = sorted(key for key in {*asked, *there} if asked.get(key) != there.get(key))
    if not contents(output).exists():  # it has got its name since, or somebody removed it
        return None if differ or not _has_name(found) else found
    if differ:
        raise JobError(f"{folder(output)} is an unfinished {output.name} that was asked for differently "
                       f"({', '.join(differ)}): the command that began it goes on with it, {again}")
    if contents(output).stat().st_size != held:
        raise JobError(f"{contents(output)} has another size than it had: {again}")
    return Staged(found.output, found.uuid, found.places, frozenset(_done(found)))


def _has_name(found: Staged) -> bool:
    """Whether the file is complete and has its name, and only its folder was not removed."""
    with suppress(InputError), h5.reading(found.output) as file:
        return file.attrs.get("uuid") == found.uuid
    return False


def _create(output: Path, layout: str, asked: Mapping[str, Any], lay_out: LayOut, needs: int) -> Staged:
    clear(output)
    folder(output).mkdir(parents=True, exist_ok=True)
    try:
        _check_room(output, needs)
        place.sync(output.parent)
        with h5.writing(contents(output), layout) as file:
            made = Staged(output, str(file.attrs["uuid"]), lay_out(file))
        with contents(output).open("r+b") as raw:
            raw.write(INSTEAD)
        with place.writing(folder(output) / "plan") as plan:
            json.dump({"asked": asked, "bytes": contents(output).stat().st_size, "uuid": made.uuid,
                       "places": made.places}, plan)
    except BaseException:
        clear(output)
        raise
    return made


def _check_room(output: Path, needs: int) -> None:
    """Raises `JobError` where the disk has less room than that."""
    free = shutil.disk_usage(folder(output)).free
    if needs > free:
        raise JobError(f"{output} needs {size(needs)} more, and only {size(free)} are free there")


def clear(output: Path) -> None:
    """Removes what was begun at `output`, and nothing else that may lie there. Raises `OSError`."""
    for ours in OURS:
        for path in folder(output).glob(ours):
            path.unlink(missing_ok=True)
    with suppress(OSError):  # it is not there, or has other files
        folder(output).rmdir()


def _line(made: Staged, name: str) -> bytes:
    """What says that a dataset of this very file is filled."""
    return f"{name} {zlib.crc32(f'{made.uuid} {name}'.encode()):08x}".encode()


def _done(made: Staged) -> set[str]:
    """The datasets that are noted as filled. Lines that were cut off, damaged, or are of another file say nothing."""
    names = {_line(made, name): name for name in made.places}
    whole = (line for journal in folder(made.output).glob("done-*") for line in journal.read_bytes().split(b"\n")[:-1])
    return {names[line] for line in whole if line in names}


class Writer:
    """Fills datasets, in one process of number `rank`. Raises `JobError` where they cannot be written."""

    def __init__(self, made: Staged, rank: int = 0) -> None:
        self._made = made
        self._filled: list[str] = []
        self._bytes, self._since = 0, time.monotonic()
        self.committed = 0
        """bytes of the datasets that this process has filled and noted"""
        try:
            self._file = os.open(contents(made.output), os.O_WRONLY)
            self._journal = os.open(folder(made.output) / f"done-{rank}", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        except OSError as error:
            raise place.unwritable(made.output, error) from None
        self._first = b"\n"  # an earlier process may have left a line without its end

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *failure: object) -> None:
        os.close(self._file)
        os.close(self._journal)

    def fill(self, name: str, blocks: Iterable[np.ndarray]) -> None:
        """The whole dataset from blocks of consecutive values, of its type and byte order."""
        at, count = self._made.places[name]
        end = at + count
        for block in blocks:
            data = np.ascontiguousarray(block).reshape(-1).view(np.uint8).data
            assert at + len(data) <= end, f"{name}: more than {count} bytes"
            self._try(lambda: put(self._file, data, at))  # noqa: B023  # called at once
            at += len(data)
        assert at == end, f"{name}: {end - at} bytes of {count} are missing"
        self._filled.append(name)
        self._bytes += count
        if self._bytes >= BATCH or time.monotonic() - self._since >= EVERY:
            self.commit()

    def commit(self) -> None:
        """Brings to disk what was filled, and then a note of it; where that fails, none of it counts as filled."""
        names, count = self._filled, self._bytes
        self._filled, self._bytes, self._since = [], 0, time.monotonic()
        if names:
            self._try(lambda: self._commit(b"".join(_line(self._made, name) + b"\n" for name in names)))
            self.committed += count

    def _commit(self, lines: bytes) -> None:
        os.fdatasync(self._file)
        put(self._journal, memoryview(self._first + lines))
        self._first = b""
        os.fdatasync(self._journal)

    def _try(self, work: Callable[[], None]) -> None:
        try:
            work()
        except OSError as error:
            raise place.unwritable(self._made.output, error) from None


def put(handle: int, data: memoryview, at: int | None = None) -> None:
    """Writes all of `data`, at its end where no place is given. Raises `OSError`."""
    while data:
        count = os.write(handle, data) if at is None else os.pwrite(handle, data, at)
        data, at = data[count:], None if at is None else at + count


def finish(made: Staged, check: Callable[[], None] = lambda: None) -> None:
    """Gives the file its name, once all datasets are filled and noted, by whichever processes.

    `check` is called before that, and may raise. Raises `JobError`.
    """
    try:
        handle = os.open(contents(made.output), os.O_WRONLY)
        try:
            os.fsync(handle)
            check()
            put(handle, memoryview(SIGNATURE), 0)
            os.fsync(handle)
        finally:
            os.close(handle)
        place.put(contents(made.output), made.output)
        clear(made.output)
    except OSError as error:
        raise place.unwritable(made.output, error) from None
