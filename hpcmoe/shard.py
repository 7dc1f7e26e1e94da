"""A shard of a job: the part of its prompts that one task of a job array answers."""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hpcmoe.errors import JobError

WORDS = re.compile(r"(\d{1,9})/(\d{1,9})")
MARK = "# shard "
"""How the line begins by which the identity of a shard differs from that of the whole job."""


@dataclass(frozen=True)
class Shard:
    """Every `count`-th prompt, from `number` on: shards of a sorted file take equally long."""

    number: int
    """from 0"""
    count: int

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def rows(self, prompts: int) -> np.ndarray:
        """`[n]` int64 ascending: which of so many prompts are its own."""
        return np.arange(self.number, prompts, self.count)

    @property
    def suffix(self) -> str:
        """What names its output: ".3-of-8"."""
        return f".{self.number}-of-{self.count}"

    def named(self, output: Path) -> Path:
        """Where its results go, beside those of the whole job: out.h5 -> out.3-of-8.h5."""
        return output.with_name(f"{output.stem}{self.suffix}{output.suffix}")


WHOLE = Shard(0, 1)
"""All prompts."""


def parse(words: str) -> Shard:
    """ "3/8" as a shard; the whole where there are no words. Raises `JobError`."""
    if not words:
        return WHOLE
    match = WORDS.fullmatch(words)
    if match is None or int(match[1]) >= int(match[2]):
        raise JobError(f"shard {words}: should be NUMBER/COUNT, as 0/8 to 7/8 for 8 shards")
    return Shard(int(match[1]), int(match[2]))


def marked(identity: str, words: str) -> str:
    """The identity of the shard `words` of the job that has `identity`; the same where there are no words."""
    return f"{identity}{MARK}{words}\n" if words else identity


def split(identity: str) -> tuple[str, str]:
    """The opposite of `marked`: the identity of the whole job, and the shard's words, "" for none."""
    whole, _, words = identity.partition(MARK)
    return whole, words.strip()
