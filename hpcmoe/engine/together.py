"""A micro-batch among the tokens of its team, which shares the heads of attention."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hpcmoe.exchange.interface import Rows
from hpcmoe.exchange.team import TeamLane
from hpcmoe.slots import Shard
from hpcmoe.types import Batch, Extent, Layout, Span, dense


@dataclass(frozen=True)
class Split:
    """A team, seen from one of its ranks, which are neighbours."""

    comm: Any
    heads: Shard
    """the part of the heads that this rank has"""


def split_of(comm, ranks: int) -> Split | None:
    """The team of this rank, of `ranks` neighbours; None where each attends alone. Collective over `comm`."""
    if ranks == 1:
        return None
    team = comm.Split(comm.rank // ranks, comm.rank)
    return Split(team, Shard(team.rank, ranks))


def heads_of(split: Split | None) -> Shard:
    """The part of the heads that a rank has."""
    return split.heads if split else Shard()


@dataclass
class Together:
    """The handle of what a micro-batch needs of its team."""

    lane: TeamLane
    rank: int
    """in the team"""
    waits: bool = False
    """whether its tokens are ready to leave for an attention"""
    batch: Batch = field(init=False)
    """all tokens of the team, one rank behind the other; nothing is asked for"""
    rows: np.ndarray = field(init=False)
    """`[t]` int64: of each rank"""
    seen: Any = field(init=False)
    """what the device's attention needs to know of them: their angles, or their `attends.Tokens`"""

    def look(self, slots: int) -> None:
        """Behind the meeting; `slots` are those of one rank."""
        self.batch, self.rows = _batch(self.lane.meeting.spans(slots)), self.lane.meeting.rows

    def leave(self, kind: str) -> tuple[Rows, Layout, Extent]:
        """For one of the two exchanges, "gather" or "bring": what comes, and how much moves."""
        gather, bring = self.lane.extents()
        if kind == "gather":
            return self.lane.gather, dense(self.rows, self.rank), gather
        return self.lane.bring, dense(np.full(len(self.rows), self.rows[self.rank]), self.rank), bring


def _batch(spans: Sequence[Span]) -> Batch:
    """The tokens of some spans as attention needs to know them."""
    none = np.empty(0, np.int32)
    position = np.concatenate([none, *(np.arange(s.cached, s.cached + s.rows, dtype=np.int32) for s in spans)])
    return Batch(np.zeros(len(position), np.int32), position, tuple(spans), none, none.astype(np.int64), none)
