"""Files of others are looked through in a child before they are opened here; `files.examine` is what the child does.

A file is looked through once by a process, as long as it stays the same; what a rank was told of one by another rank,
it believes. So readers call `check`, and what goes on with a file that was checked does not.
"""

import atexit
import importlib
import stat
import sys
from functools import cache
from pathlib import Path

from hpcmoe.child import Child, Unavailable, look
from hpcmoe.errors import InputError

HDF5 = "hpcmoe.files.examine"

Mark = tuple[int, int, int, int]
"""What a file is: device, number, size, time of its last change."""

_told: dict[tuple[str, str, Path, Mark], str] = {}
"""What was found wrong with each file, "" for nothing; by who looked, and what it should have been."""
_children: dict[str, Child] = {}
"""Of this process, by the module that each runs."""


def check(path: Path, layout: str = "", by: str = HDF5) -> None:
    """Raises `InputError` where the file at `path`, of `layout` if that is given, is none that can safely be read.

    `by` is the module whose `examine` looks at it. What cannot be opened at all is left to who opens it.
    """
    mark = _mark(path)
    if not mark:
        return
    key = by, layout, path, mark
    wrong = _told[key] if key in _told else _ask(path, layout, by)
    if mark == _mark(path):  # else it changed meanwhile
        _told[key] = wrong
    if wrong:
        raise InputError(wrong)


def _ask(path: Path, layout: str, by: str) -> str:
    """What is wrong with it, "" for nothing."""
    try:
        if by not in _children or not _children[by].lives():
            if by in _children:
                _children.pop(by).end()
            _children[by] = Child(by)
        return _children[by].ask(path, layout)
    except Unavailable as why:
        _warn(str(why))
    return look(importlib.import_module(by).examine, path, layout)[0]


def end() -> None:
    """Ends what was started: nothing more is going to be opened soon."""
    while _children:
        _children.popitem()[1].end()


atexit.register(end)


@cache
def _warn(why: str) -> None:
    print("hpcmoe: warning: no process can be started in which files are looked through with limits on memory and "
          f"time, so this one does it without ({why})", file=sys.stderr, flush=True)


def _mark(path: Path) -> Mark | None:
    """None where there is no file. Raises `InputError` where it is something that only looks like one."""
    try:
        found = path.stat()
    except OSError:
        return None
    if stat.S_ISDIR(found.st_mode):
        return None
    if not stat.S_ISREG(found.st_mode):
        raise InputError(f"{path} is not a regular file")
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
