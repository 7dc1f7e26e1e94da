"""A process with limits on memory and time, in which files of others are looked through before this one opens them.

The libraries that read them may crash, hang or take gigabytes where a file is malformed. Then it is the child that
does, and that is an answer too. It is a fresh interpreter that never starts MPI, so a rank may have one after MPI has
begun.
"""

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from hpcmoe.errors import InputError, size

MEMORY = 512 << 20
"""Bytes that a child may take for a file, whatever its size, beside what its libraries take."""
MORE = 32
"""It may take so many times the bytes of the file on top of that."""
SECONDS = 4.0
"""Of a core, for a file, and one more for each `SPEED` bytes of it; asleep too it may take `PATIENCE` times as long."""
SPEED = 20e6
PATIENCE = 30
LONGEST = 600.0
BEGIN = 120
"""Seconds of a child until its libraries are loaded."""
HEARD = b"ready\n"

Examiner = Callable[[Path, str], None]
"""(path, what it should be): raises `InputError` where something is wrong with the file"""


class Unavailable(Exception):
    """No child can be started."""


def interpreter(module: str, *words: str) -> tuple[list[str], dict[str, str]]:
    """The command and the environment of a fresh interpreter that runs `module`.

    It looks for modules where this process does, and never in the working directory; where h5py has MPI built in, that
    must not begin.
    """
    told = dict(os.environ, PYTHONPATH=os.pathsep.join(p for p in sys.path if p), OPENBLAS_NUM_THREADS="1",
                MPI4PY_RC_INITIALIZE="0")
    return [sys.executable, "-P", "-m", module, *words], told


class Child:
    """A child that runs `module`, which calls `serve`. Raises `Unavailable` where it cannot be started.

    It ends with this process, however that ends.
    """

    def __init__(self, module: str) -> None:
        command, told = interpreter(module)
        try:
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                             stderr=subprocess.DEVNULL, env=told)
        except (OSError, ValueError) as error:
            raise Unavailable(str(error)) from None
        self._owner = os.getpid()
        assert self._process.stdout
        if self._process.stdout.readline() != HEARD:
            self.end()
            raise Unavailable("it ends before it begins")

    def lives(self) -> bool:
        """Whether it can be asked, by this process."""
        return self._owner == os.getpid() and self._process.poll() is None

    def ask(self, path: Path, what: str) -> str:
        """What is wrong with the file at `path`, which should be `what`; "" for nothing."""
        assert self._process.stdin and self._process.stdout
        try:
            self._process.stdin.write(json.dumps([str(path), os.path.abspath(path), what]).encode() + b"\n")
            self._process.stdin.flush()
            said, sound = json.loads(self._process.stdout.readline())
        except (OSError, ValueError):  # no line, or half of one
            return _death(path, self._process.wait())
        if not sound:
            self.end()
        return said

    def end(self) -> None:
        """Returns when it is gone."""
        if self._owner == os.getpid():
            self._process.kill()
            self._process.communicate()


def _death(path: Path, code: int) -> str:
    if -code in (signal.SIGXCPU, signal.SIGALRM):
        return f"{path} is damaged: to look through it takes more than {_seconds(path):.0f} s"
    return f"{path} is damaged: the library that reads it crashes: copy or make it again"


def serve(examine: Examiner) -> None:
    """The life of a child: answers what `ask` asks, until nobody does."""
    signal.alarm(BEGIN)
    for sign in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(sign, signal.SIG_IGN)  # Ctrl-C and a batch system's notices are for who asked
    out = os.dup(1)
    os.dup2(2, 1)  # what libraries print is no answer
    for what in (resource.RLIMIT_CORE, resource.RLIMIT_FSIZE):
        limit(what, 0)
    begun = taken()
    signal.alarm(0)
    os.write(out, HEARD)
    for line in sys.stdin:
        name, where, what = json.loads(line)
        path = Path(where)
        seconds = _seconds(path)
        spent = sum(os.times()[:2])
        limit(resource.RLIMIT_CPU, int(spent + seconds) + 1)
        signal.setitimer(signal.ITIMER_REAL, PATIENCE * seconds)
        limit(resource.RLIMIT_AS, begun + room(path))
        said, sound = look(examine, path, what)
        signal.setitimer(signal.ITIMER_REAL, 0)
        os.write(out, json.dumps([said.replace(where, name), sound]).encode() + b"\n")


def look(examine: Examiner, path: Path, what: str) -> tuple[str, bool]:
    """What is wrong with a file, and whether this process can look at another."""
    try:
        examine(path, what)
    except InputError as error:
        return str(error), True
    except MemoryError:
        return f"{path} is damaged: to look through it takes more than {size(room(path))} of memory", False
    except Exception as error:  # anything that the library says of what it cannot read
        return f"{path} is damaged ({' '.join(f'{type(error).__name__}: {error}'.split())}): make it again", False
    return "", True


def room(path: Path) -> int:
    """Bytes that may be taken for a file."""
    return MEMORY + MORE * _size(path)


def _seconds(path: Path) -> float:
    return min(LONGEST, SECONDS + _size(path) / SPEED)


def _size(path: Path) -> int:
    with suppress(OSError):
        return path.stat().st_size
    return 0


def limit(what: int, most: int) -> None:
    """Of this process; where a system has no such limit, the others must do."""
    with suppress(ValueError, OSError):
        _, hard = resource.getrlimit(what)
        resource.setrlimit(what, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def taken() -> int:
    """Bytes of this process's address space."""
    with suppress(OSError):
        return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    return 1 << 30
