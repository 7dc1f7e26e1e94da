"""The group `bias/` of parts and results: what a selection bias did (`balance.mode = bias`).

    bias/moved [L]: (token, k) that went to other experts than without it
    bias/nats [2]: minus the log-probability of some tokens of the prompts, with the bias as it was in the end, and
        without it
    bias/tokens [1]: how many those are; 0 where the run did not come to its end
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from hpcmoe.errors import InputError
from hpcmoe.files import h5


@dataclass(frozen=True)
class Biased:
    """What is there."""

    moved: np.ndarray
    """`[L]` int64"""
    tokens: int = 0
    nats: tuple[float, float] = (0.0, 0.0)

    @property
    def perplexity(self) -> tuple[float, float]:
        """With the bias, and without; NaN where no token was scored."""
        return tuple(float(np.exp(nats / self.tokens)) if self.tokens else np.nan  # type: ignore[return-value]
                     for nats in self.nats)


def add(found: Sequence[Biased | None]) -> Biased | None:
    """All together; None where none has any."""
    some = [one for one in found if one]
    if not some:
        return None
    nats = np.sum([one.nats for one in some], axis=0)
    return Biased(np.sum([one.moved for one in some], axis=0), sum(one.tokens for one in some),
                  (float(nats[0]), float(nats[1])))


def put(file: h5py.File, found: Biased) -> None:
    """Writes the group."""
    h5.put(file, "bias/moved", found.moved, "assignments that a bias moved to other experts, by layer [rows]")
    h5.put(file, "bias/nats", np.array(found.nats), "surprise of some tokens with the bias, and without [nat]")
    h5.put(file, "bias/tokens", np.array([found.tokens]), "how many those are")


def take(file: h5py.File, layers: int, path: Path) -> Biased | None:
    """What is there, if anything. Raises `InputError`."""
    if "bias" not in file:
        return None
    moved, tokens = (h5.take(file, f"bias/{name}", path, np.integer, 1) for name in ("moved", "tokens"))
    nats = h5.take(file, "bias/nats", path, np.floating, 1)
    shapes = (moved.shape, tokens.shape, nats.shape)
    if shapes != ((layers,), (1,), (2,)) or (moved < 0).any() or (tokens < 0).any() or not np.isfinite(nats).all():
        raise InputError(f"{path}: bias has values that cannot be, or is of other layers: make the file again")
    return Biased(moved, int(tokens[0]), (float(nats[0]), float(nats[1])))
