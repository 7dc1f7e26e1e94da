"""The lock on an output: one job at a time.

`out.h5.lock` is a line of JSON that says who holds it; its time of modification is the holder's heartbeat. A job that
was killed leaves it behind, and the next one takes it over: at once where it sees that the process is gone, or that the
batch system started the same job again; else when the heart stands still. Only times of the file server are compared,
so hosts may disagree about the time.
"""

import glob
import hashlib
import json
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from hpcmoe.errors import JobError, visible
from hpcmoe.files import place

BEAT = 10.0
"""Seconds between two heartbeats."""
STALE = 60.0
"""Seconds after the last one that a holder counts as dead, where nothing else is known of it."""
WATCHED = 2.5
"""Heartbeats for which a lock is watched before it is taken over."""
DIGITS = 16
"""Of a claim's name."""
LONGEST = 1 << 14
"""Bytes that are read of a lock."""
LOOK = 0.2
"""Seconds between two looks at a heart."""
JOB_VARIABLES = ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "JOB_ID")
"""Where batch systems leave the number of the job."""


@dataclass(frozen=True)
class Holder:
    """Who holds a lock."""

    token: str
    """of this very lock"""
    host: str
    process: int
    started: int
    """when, by its host: a process's number may be used again"""
    system: str
    """where such numbers mean the same: the host since it booted, and its namespace of processes"""
    job: str
    """of the batch system; "" without one"""
    restarts: str
    """how often that started the job again"""

    def __str__(self) -> str:
        return f"process {self.process} on {self.host}" + (f", job {self.job}" if self.job else "")


@dataclass(frozen=True)
class Held:
    """A lock that this job holds, as all its ranks know it."""

    path: Path
    token: str

    def check(self) -> None:
        """Raises `JobError` where another job took it over, as it would from one that seemed dead: nothing may be
        written then."""
        try:
            found = read(self.path)
        except OSError as error:
            raise JobError(f"{self.path} cannot be read: {error.strerror or error}") from None
        if not found or found.token != self.token:
            raise JobError(f"this job was taken for dead, and {found or 'nobody'} has its lock {self.path} now; what "
                           "it had committed is there")


def beside(output: Path) -> Path:
    """Where the lock of `output` lies."""
    return output.with_name(output.name + ".lock")


def read(path: Path) -> Holder | None:
    """Who holds the lock at `path`; None where it is not there, or says nothing. Raises `OSError` where it is there and
    cannot be read."""
    return _parse(_content(path))


def lives(holder: Holder) -> bool | None:
    """Whether a holder lives; None where only its heart tells."""
    me = _me()
    if holder.system == me.system:
        started = _started(holder.process)
        hidden = started is None and place.alive(holder.process) and not Path(f"/proc/{holder.process}").exists()
        return None if hidden else started == holder.started  # another user's, where /proc has hidepid
    return False if holder.job and holder.job == me.job and holder.restarts != me.restarts else None


@contextmanager
def taken(output: Path, dead: Held | None = None) -> Iterator[Held]:
    """Holds the lock of `output` within the block; whoever held it as `dead` is known to be.

    Raises `JobError` where another job does, or where there is no room for it.
    """
    path, me = beside(output), _me()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        place.sweep(path)
        while not _put(path, me) and read(path) != me:  # NFS may say of our own that it was there
            _end_or_succeed(output, path, me, dead)
        for claim in path.parent.glob(f"{glob.escape(path.name)}.{'[0-9a-f]' * DIGITS}"):
            claim.unlink(missing_ok=True)  # on a lock that is gone
    except OSError as error:
        raise place.unwritable(path, error) from None
    done = threading.Event()
    heart = threading.Thread(target=_beat, args=(path, me, done), name="hpcmoe-lock", daemon=True)
    heart.start()
    try:
        yield Held(path, me.token)
    finally:
        done.set()
        heart.join()
        with suppress(OSError):  # then it stays, and the next one sees that this process is gone
            if read(path) == me:
                path.unlink(missing_ok=True)


def _end_or_succeed(output: Path, path: Path, me: Holder, dead: Held | None) -> None:
    """Takes the lock over from a dead holder, if nobody else does. Raises `JobError` where the holder lives."""
    before = _content(path)
    if before is None:
        if path.is_symlink():
            raise JobError(f"{path} is a link that leads nowhere: remove it")
        return
    holder = _parse(before)
    alive = lives(holder) if holder else None
    if holder and dead and holder.token == dead.token:
        alive = False
    if alive is None:
        alive = not _stands_still(path, holder)
    if alive and _content(path) is not None:
        raise JobError(f"output {output} is in use by {holder or 'another job'}: wait for its end, or give another "
                       "output")
    # of those that found this very lock stale one may replace it, and only while it is still there
    claim = path.with_name(f"{path.name}.{hashlib.sha256(before).hexdigest()[:DIGITS]}")
    if not _put(claim, me) and read(claim) != me:
        rival = read(claim)
        if (rival and lives(rival) is False) or _age(claim) > STALE:
            claim.unlink(missing_ok=True)
        time.sleep(LOOK)
        return
    try:
        if _content(path) == before:
            place.unfinished(path).write_text(json.dumps(asdict(me)) + "\n")
            place.unfinished(path).replace(path)
    finally:
        claim.unlink(missing_ok=True)


def _put(path: Path, me: Holder) -> bool:
    """Puts a file that says `me` at `path`, whole from the first moment; False where one is there."""
    mine = place.unfinished(path)
    mine.write_text(json.dumps(asdict(me)) + "\n")
    try:
        os.link(mine, path)
    except FileExistsError:
        return False
    except OSError:  # no hard links there
        with suppress(FileExistsError), path.open("x") as file:
            file.write(mine.read_text())
            return True
        return False
    finally:
        mine.unlink(missing_ok=True)
    return True


def _stands_still(path: Path, holder: Holder | None) -> bool:
    """Whether the file at `path` stays as it is until it is `STALE` seconds old, and for more than two heartbeats: on
    some file systems it is the hosts that say when a file was modified."""
    first, wait = _stamp(path), max(STALE - _age(path), WATCHED * BEAT)
    end = time.monotonic() + wait
    print(visible(f"hpcmoe: {holder or 'somebody'} has {path}: waiting up to {wait:.0f} s to see whether it lives"),
          file=sys.stderr, flush=True)
    while time.monotonic() < end and _stamp(path) == first:
        time.sleep(LOOK)
    return _stamp(path) == first


def _stamp(path: Path) -> float:
    """When the file was modified, 0 where it is gone; opened for it, since NFS asks its server then."""
    try:
        with path.open("rb") as file:
            return os.fstat(file.fileno()).st_mtime
    except OSError:
        return 0.0


def _age(path: Path) -> float:
    """Seconds since the file was modified, by the clock that stamps files there."""
    probe = place.unfinished(path)
    try:
        probe.write_bytes(b"\n")
        return max(0.0, _stamp(probe) - _stamp(path))
    finally:
        probe.unlink(missing_ok=True)


def _beat(path: Path, me: Holder, done: threading.Event) -> None:
    while not done.wait(BEAT):
        with suppress(OSError):
            if read(path) == me:
                os.utime(path)


def _content(path: Path) -> bytes | None:
    try:
        with path.open("rb") as file:
            return file.read(LONGEST)
    except FileNotFoundError:
        return None


def _parse(content: bytes | None) -> Holder | None:
    try:
        return Holder(**json.loads(content or b""))
    except (ValueError, TypeError):  # written by something else, or not to its end
        return None


def _me() -> Holder:
    job = next((os.environ[name] for name in JOB_VARIABLES if os.environ.get(name)), "")
    return Holder(uuid.uuid4().hex, socket.gethostname(), os.getpid(), _started(os.getpid()) or 0, _system(), job,
                  os.environ.get("SLURM_RESTART_COUNT", "0"))


def _system() -> str:
    with suppress(OSError):
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
    return socket.gethostname()


def _started(process: int) -> int | None:
    """When a process started, by its host; None where there is none, or where it is dead and only not buried."""
    try:
        state, *fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state in "ZX" else int(fields[18])
