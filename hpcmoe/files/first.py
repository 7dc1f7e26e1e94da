"""How long prompts waited for their first token, in parts, results, and what has begun: `first_token` `[n]` float64.

Seconds from when a prompt got a slot of a rank to the end of the step that gave it its first new token, steps of other
parts of a long prompt included; not those in which it waited for a slot, which say how many prompts there were. An
answer that was begun in an earlier attempt keeps the seconds of that one; a prompt that had no token there begins anew.
"""

from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np

from hpcmoe.errors import InputError
from hpcmoe.files import h5

LONGEST = 1e9
"""Seconds of anything; what is beyond was not measured."""


def put(file: h5py.File, seconds: Sequence[float]) -> None:
    """Those of each answer; NaN where they are not known."""
    h5.put(file, "first_token", np.array(seconds, np.float64), "seconds from when the prompt got a slot of a rank to "
           "the end of the step of its first new token; NaN where they are not known [s]")


def take(file: h5py.File, path: Path, count: int) -> np.ndarray:
    """`[count]` float64, NaN where they are not known: older versions did not tell. Raises `InputError`."""
    if "first_token" not in file:
        return np.full(count, np.nan)
    found = h5.take(file, "first_token", path, np.floating, 1).astype(np.float64)
    if len(found) != count:
        raise InputError(f"{path}: first_token has {len(found)} entries, not {count}: make the file again")
    if not (np.isnan(found) | (found >= 0) & (found <= LONGEST)).all():
        raise InputError(f"{path}: first_token has seconds that cannot be: make the file again")
    return found
