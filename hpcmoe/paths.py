"""Files of the user's: text that is read, and places that can be written, in the words of errors."""

import io
import os
from pathlib import Path

from hpcmoe.errors import HpcmoeError, JobError, size


def read_text(path: Path, error: type[HpcmoeError], what: str, most: int | None = None) -> str:
    """The text in `path`: UTF-8, with or without a mark in front, of `most` bytes where that is given.

    Raises `error`, naming `what` it should have been.
    """
    try:
        with path.open("rb") as file:
            found = file.read() if most is None else file.read(most + 1)
        if most is not None and len(found) > most:
            raise error(f"{what} {path} is larger than {size(most)}")
        return io.TextIOWrapper(io.BytesIO(found), encoding="utf-8-sig").read()
    except UnicodeDecodeError:
        raise error(f"{what} {path} is not a text file (UTF-8)") from None
    except OSError as problem:
        raise error(f"{what} {path} {unreadable(problem)}") from None


def unreadable(problem: OSError) -> str:
    """Why a path cannot be opened for reading, to stand behind its name."""
    if isinstance(problem, (FileNotFoundError, NotADirectoryError)):
        return "does not exist"
    if isinstance(problem, IsADirectoryError):
        return "is a folder, not a file"
    if isinstance(problem, PermissionError):
        return "may not be read: permission denied"
    return f"cannot be read: {problem.strerror or problem}"


def check_output(output: Path, *sources: Path) -> None:
    """Raises `JobError` where no file can be put at `output`, or where it is one of the `sources` that are read."""
    for source in sources:
        if same(output, source):
            raise JobError(f"output {output} is {source}, which is read: give another output")
    if os.path.isdir(output):
        raise JobError(f"output {output} is a folder: give the name of a file")
    check_folder(output.absolute().parent, f"output {output}")


def same(a: Path, b: Path) -> bool:
    """Whether two paths are one file, by whatever links; also where it is not there yet."""
    if os.path.exists(a) and os.path.exists(b):
        return os.path.samefile(a, b)
    return os.path.realpath(a) == os.path.realpath(b)


def check_folder(folder: Path, what: str) -> None:
    """Raises `JobError` where `folder` is none or cannot be written; where it is missing, those above it count."""
    while not os.path.lexists(folder):
        folder = folder.parent
    if not os.path.isdir(folder):
        raise JobError(f"{what}: {folder} is not a folder")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise JobError(f"{what}: the folder {folder} may not be written: permission denied")
