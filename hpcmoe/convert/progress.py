"""How far a model file is, on stderr: a bar on a terminal, a line every ten seconds in a log."""

import sys
import time
from typing import Protocol

from hpcmoe.errors import size

EVERY = 10.0
"""Seconds between two lines in a log."""


class Progress(Protocol):
    def update(self, done: int) -> None:
        """Bytes that all ranks have written, those of earlier runs included."""

    def close(self) -> None:
        """Nothing more comes."""


class Silence:
    """The progress of every rank but 0."""

    def update(self, done: int) -> None:
        """See `Progress`."""

    def close(self) -> None:
        """See `Progress`."""


class Lines:
    """For logs."""

    def __init__(self, total: int, before: int) -> None:
        self._total, self._before = total, before
        self._begin = self._last = time.monotonic()

    def update(self, done: int) -> None:
        """See `Progress`."""
        now = time.monotonic()
        if now - self._last < EVERY or done <= self._before:
            return
        self._last = now
        rate = (done - self._before) / (now - self._begin)
        print(f"hpcmoe: {size(done)} of {size(self._total)}, {size(rate)}/s, {(self._total - done) / rate / 60:.1f} "
              "minutes left", file=sys.stderr, flush=True)

    def close(self) -> None:
        """See `Progress`."""


class Bar:
    """For terminals."""

    def __init__(self, total: int, before: int) -> None:
        from tqdm import tqdm
        self._bar = tqdm(total=total, initial=before, unit="B", unit_scale=True, leave=False, file=sys.stderr)

    def update(self, done: int) -> None:
        """See `Progress`."""
        self._bar.update(max(0, done - self._bar.n))

    def close(self) -> None:
        """See `Progress`."""
        self._bar.close()


def open_progress(rank: int, total: int, before: int) -> Progress:
    """Of `total` bytes, of which earlier runs wrote some `before`, as fits this rank and its stderr."""
    if rank:
        return Silence()
    return Bar(total, before) if sys.stderr.isatty() else Lines(total, before)
