"""How a file appears under its name: whole and on disk, or not at all."""

import glob
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from hpcmoe.errors import JobError


def unfinished(path: Path) -> Path:
    """Where this process writes what will be `path`."""
    return path.with_name(f"{_prefix(path)}{os.getpid()}.tmp")


def put(written: Path, path: Path) -> None:
    """Gives the file `written`, which is on disk, the name `path`. Raises `JobError`."""
    try:
        written.replace(path)
        sync(path.parent)
    except OSError as error:
        raise unwritable(path, error) from None


@contextmanager
def writing(path: Path, mode: str = "w") -> Iterator[IO]:
    """A file, open, that appears under `path` when the block ends well, whole and on disk; else nothing does. Text is
    UTF-8. Raises `JobError` where it cannot be written."""
    written = unfinished(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with written.open(mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        put(written, path)
    except OSError as error:
        raise unwritable(path, error) from None
    finally:
        written.unlink(missing_ok=True)


def unwritable(path: Path, error: OSError) -> JobError:
    """What is said where `path` could not be written."""
    return JobError(f"{path} cannot be written: {error.strerror or error}")


def _prefix(path: Path) -> str:
    """How unfinished files of `path` begin; the process that writes it follows."""
    return f".{path.name}.{socket.gethostname()}-"


def sweep(path: Path) -> None:
    """Removes what writers of `path` left unfinished that died on this host."""
    for left in path.parent.glob(f"{glob.escape(_prefix(path))}*.tmp"):
        process = left.name.removeprefix(_prefix(path)).removesuffix(".tmp")
        if process.isdigit() and not alive(int(process)):
            with suppress(OSError):  # somebody else's, or gone by now
                left.unlink()


def alive(process: int) -> bool:
    """Whether there is a process of that number on this host, anybody's."""
    try:
        with suppress(PermissionError):  # somebody else's, but alive
            os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def sync(path: Path) -> None:
    """Waits until `path`, a file or a folder, is on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
