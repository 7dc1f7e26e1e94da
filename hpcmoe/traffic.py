"""What exchanges took and moved."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

CLASSES = ("own rank", "same node", "other nodes")
"""Where a row goes, seen from the rank that sends it."""


@dataclass(frozen=True)
class Traffic:
    """What exchanges took and moved: those of a step, or of each layer or step (`[n]` in front of every shape)."""

    seconds: np.ndarray
    """`[]` float64 seconds in which counts or rows were under way; once, however many were at the same time"""
    exposed: np.ndarray
    """`[]` float64 seconds of them in which the rank waited for them and computed nothing"""
    bytes: np.ndarray
    """`[len(CLASSES)]` int64 bytes of the rows sent, both ways; a rank's own rows are copied"""

    @classmethod
    def none(cls, *n: int) -> "Traffic":
        """Nothing."""
        return cls(np.zeros(n), np.zeros(n), np.zeros((*n, len(CLASSES)), np.int64))

    @classmethod
    def stack(cls, parts: Sequence["Traffic"]) -> "Traffic":
        """One entry for each part, `[n]`."""
        n = len(parts)
        return cls(np.array([p.seconds for p in parts], np.float64), np.array([p.exposed for p in parts], np.float64),
                   np.array([p.bytes for p in parts], np.int64).reshape(n, len(CLASSES)))

    def __add__(self, other: "Traffic") -> "Traffic":
        return Traffic(self.seconds + other.seconds, self.exposed + other.exposed, self.bytes + other.bytes)

    def entries(self) -> list["Traffic"]:
        """The opposite of `stack`."""
        return [Traffic(*one) for one in zip(self.seconds, self.exposed, self.bytes)]

    def total(self) -> "Traffic":
        """All entries together."""
        return Traffic(self.seconds.sum(axis=0), self.exposed.sum(axis=0), self.bytes.sum(axis=0))

    @property
    def hidden(self) -> np.ndarray:
        """`[]` float64, from 0 to 1: the part that arithmetic hid; NaN where nothing travelled."""
        return 1 - np.divide(self.exposed, self.seconds, out=np.full_like(self.seconds, np.nan),
                             where=self.seconds > 0)
