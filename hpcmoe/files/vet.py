"""Files of others are looked through in a child before they are opened here; `files.examine` is what the child does.

A file is looked through once by a process, as long as it stays the same; what a rank was told of one by another rank, it
believes. So readers call `check`, and what goes on with a file that was checked does not.
"""

import atexit
import stat
import sys
from functools import cache
from pathlib import Path

from hpcmoe.child import Child, Unavailable
from hpcmoe.errors import InputError

_passed: set[tuple[int, int, int, int]] = set()
"""What each file was that was looked through: device, number, size, time of its last change."""
_children: list[Child] = []
"""The child of this process, if it has one."""


def check(path: Path, layout: str = "") -> None:
    """Raises `InputError` where the file at `path`, of `layout` if that is given, is none that can safely be read.

    What cannot be opened at all is left to who opens it.
    """
    mark = _mark(path)
    if mark and mark not in _passed:
        if wrong := _ask(path, layout):
            raise InputError(wrong)
        if mark == _mark(path):
            _passed.add(mark)


def _ask(path: Path, layout: str) -> str:
    """What is wrong with it, "" for nothing."""
    try:
        if not (_children and _children[0].lives()):
            end()
            _children.append(Child("hpcmoe.files.examine"))
        return _children[0].ask(path, layout)
    except Unavailable as why:
        _warn(str(why))
    from hpcmoe.files.examine import examine  # its readers import us
    examine(path, layout)
    return ""


def end() -> None:
    """Ends the child, if there is one: nothing more is going to be opened soon."""
    while _children:
        _children.pop().end()


atexit.register(end)


@cache
def _warn(why: str) -> None:
    print("hpcmoe: warning: no process can be started in which files are looked through with limits on memory and time, "
          f"so this one does it without ({why})", file=sys.stderr, flush=True)


def _mark(path: Path) -> tuple[int, int, int, int] | None:
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
