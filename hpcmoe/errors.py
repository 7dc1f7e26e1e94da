"""What went wrong, in the user's words, with the exit code that it ends with.

Only these classes end a command with a line instead of a traceback. Raise one where the cause is
known; never wrap an unknown exception in one.
"""

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
