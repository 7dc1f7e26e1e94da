"""Notice that a job is to end soon: a signal, or the end of its time."""

import math
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

SIGNALS = (signal.SIGUSR1, signal.SIGTERM)
"""What batch systems send ahead of the end: as asked for (`--signal=USR1@300`), or seconds before they kill."""
ONE = 1.0
"""Seconds within which signals count as one: a batch system, a launcher and a job script may pass on the same one."""
TIME, DEATH, TOLD = -1, -2, -3
"""The reason where the job's time is nearly over, where a rank died, or where another group of ranks has one; else it
is the number of a signal, or 0."""
SLACK, SHARE = 60.0, 0.05
"""Seconds that are left free at the end of a job's time, but no more than this part of it."""
ANSWER = 10.0
"""Seconds that Slurm may take to answer."""


class Notice:
    """What this rank has heard so far. Until `listening` no signal is."""

    def __init__(self) -> None:
        self.begun = time.monotonic()
        """when the job began, as far as this process knows"""
        self._signal, self._heard, self._end = 0, 0.0, math.inf

    @contextmanager
    def listening(self, *more: signal.Signals) -> Iterator[None]:
        """Within the block a signal, one of `SIGNALS` or `more`, is noted; a second one, later than `ONE`, ends the
        process as ever."""
        before = {number: signal.signal(number, self._hear) for number in (*SIGNALS, *more)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _hear(self, number: int, frame) -> None:
        now = time.monotonic()
        if not self._signal:
            self._signal, self._heard = number, now
        elif now - self._heard > ONE:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    def limit(self, seconds: float, since: float) -> None:
        """The job has so many seconds from `since` (of `time.monotonic`)."""
        self._end = since + seconds - min(SLACK, SHARE * seconds)

    def reason(self, ahead: float = 0.0) -> int:
        """Why to end now: 0 for no reason. `ahead` is what the next step and a commit may take, in seconds."""
        return self._signal or (TIME if time.monotonic() + ahead > self._end else 0)


def words(reason: int) -> str:
    """A reason, for people."""
    named = {TIME: "its time is nearly over", DEATH: "it died"}
    return named.get(reason) or f"{signal.Signals(reason).name} came"


def slurm_seconds(environment: Mapping[str, str]) -> float | None:
    """Seconds that are left of the Slurm job around this process; None without one, or without a limit."""
    job, end = environment.get("SLURM_JOB_ID", ""), environment.get("SLURM_JOB_END_TIME", "")
    if not job:
        return None
    if end.isdigit():  # from Slurm 23.02 on
        return int(end) - time.time()
    try:
        asked = subprocess.run(["squeue", "--noheader", "--jobs", job, "--format", "%L"], capture_output=True,
                               text=True, timeout=ANSWER)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return parse_left(asked.stdout.strip())


def parse_left(text: str) -> float | None:
    """Slurm's [days-][[hours:]minutes:]seconds -> seconds; None for all else, as UNLIMITED."""
    days, _, clock = text.rpartition("-")
    fields = clock.split(":")
    if not all(field.isdigit() for field in [days or "0", *fields]):
        return None
    seconds = 0
    for field in fields:
        seconds = 60 * seconds + int(field)
    return 86400.0 * int(days or "0") + seconds
