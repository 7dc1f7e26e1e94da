"""How far a run is, on stderr: a bar on a terminal, a line every ten seconds in a log."""

import sys
import time
from typing import Protocol

EVERY = 10.0
"""Seconds between two lines in a log."""


class Progress(Protocol):
    def update(self, finished: int, tokens: int) -> None:
        """`finished` prompts and `tokens` new tokens so far, on all ranks."""

    def close(self) -> None:
        """Nothing more comes."""


class Silence:
    """The progress of every rank but 0."""

    def update(self, finished: int, tokens: int) -> None:
        """See `Progress`."""

    def close(self) -> None:
        """See `Progress`."""


class Lines:
    """For logs."""

    def __init__(self, prompts: int) -> None:
        self._prompts = prompts
        self._begin = self._last = time.monotonic()

    def update(self, finished: int, tokens: int) -> None:
        """See `Progress`."""
        now = time.monotonic()
        if now - self._last >= EVERY:
            self._last = now
            print(f"hpcmoe: {finished} of {self._prompts} prompts, {tokens} tokens, "
                  f"{tokens / (now - self._begin):.1f} tokens/s", file=sys.stderr, flush=True)

    def close(self) -> None:
        """See `Progress`."""


class Bar:
    """For terminals."""

    def __init__(self, prompts: int) -> None:
        from tqdm import tqdm
        self._bar = tqdm(total=prompts, unit="prompt", file=sys.stderr)
        self._begin = time.monotonic()

    def update(self, finished: int, tokens: int) -> None:
        """See `Progress`."""
        rate = tokens / max(time.monotonic() - self._begin, 1e-9)
        self._bar.set_postfix_str(f"{rate:.1f} tokens/s", refresh=False)
        self._bar.update(finished - self._bar.n)

    def close(self) -> None:
        """See `Progress`."""
        self._bar.close()


def open_progress(rank: int, prompts: int) -> Progress:
    """The progress of `prompts` prompts, as fits this rank and its stderr."""
    if rank:
        return Silence()
    return Bar(prompts) if sys.stderr.isatty() else Lines(prompts)
