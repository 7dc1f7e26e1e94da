"""What went wrong, in the user's words, with the exit code that it ends with.

Only these classes end a command with a line instead of a traceback. Raise one where the cause is
known; never wrap an unknown exception in one.
"""

import unicodedata

UNITS = ("B", "kB", "MB", "GB", "TB", "PB")

CHECKPOINTED = 75
"""Exit code of a job that was told to end before it was done: all is committed, and the same command goes on."""
INTERNAL = 70
"""Exit code of everything that is not one of the classes below: a defect of the program."""


class HpcmoeError(Exception):
    """A failure with a known cause. Its text is one line: what is wrong, where, what to do."""

    code = INTERNAL


class JobError(HpcmoeError):
    """Command line, job file, rank count, or an output that belongs to another job."""

    code = 2


class InputError(HpcmoeError):
    """A model, prompts or plan file: missing, truncated, malformed, or with values that cannot be."""

    code = 3


class DeviceError(HpcmoeError):
    """The accelerator or MPI."""

    code = 4


def visible(words: str, but: str = "") -> str:
    """`words` with what would steer a terminal, break a line or turn the direction of writing as escapes: \\x1b.

    Characters in `but` stay.
    """
    return "".join(c if c in but or not _steers(c) else c.encode("unicode_escape").decode() for c in words)


def _steers(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") or (
        unicodedata.bidirectional(character) in ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"))


def size(count: float) -> str:
    """Bytes as people write them, in powers of ten: 64.1 GB."""
    for unit in UNITS:
        if abs(count) < 999.95 or unit == UNITS[-1]:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError
