"""Attention whose heads are split over a team of neighbouring ranks, on a CPU. A `layer.Team`.

Each rank keeps its own sequences and all that is not attention; of attention it computes its heads for the tokens of
all.
"""

from typing import TYPE_CHECKING

import numpy as np

from hpcmoe.engine.rank_team import RankTeam
from hpcmoe.engine.stream import Event
from hpcmoe.engine.together import Split
from hpcmoe.engine.work import Work
from hpcmoe.exchange.team import TeamLane
from hpcmoe.kernels import pack, rope
from hpcmoe.kernels.linear import product
from hpcmoe.model import heads
from hpcmoe.model.attention import mix
from hpcmoe.model.norm import norm

if TYPE_CHECKING:
    from hpcmoe.engine.segments import CpuSegments


class CpuTeam(RankTeam):
    """A rank's heads, and its team's tokens. What `layer.Team` has runs on the main thread, the rest on the stream."""

    def __init__(self, segments: "CpuSegments", split: Split, lanes: list[TeamLane], slots: int) -> None:
        """`segments` have a cache of this rank's heads, for all sequences of the team; `slots` are those of a rank."""
        super().__init__(segments, split, lanes, slots)
        self._segments, self._local = segments, heads.local(segments.model, split.heads)

    def attend(self, work: Work) -> Event:
        """See `layer.Team`."""
        return self._segments.stream.run(self._attend, work)

    def join(self, work: Work) -> Event:
        """See `layer.Team`."""
        return self._segments.stream.run(self._join, work)

    def look(self, work: Work) -> None:
        """Behind the meeting: which tokens the team has."""
        together = self._of(work)
        together.look(self._slots)
        together.seen = rope.tables(together.batch.position, self._local.attention, self._segments.dtype)

    def ready(self, work: Work) -> None:
        """The rank's tokens, normed, are made ready to go to all."""
        of, together = self._segments, self._of(work)
        with of.stage("attention", work, work.batch.rows):
            normed = norm(of.model, work.x, of.weights.layers[work.layer].attention.norm).view(np.uint16)
            counts = np.full(self._size, len(normed))
            rows, layout = together.lane.gather.room(counts, normed.shape[1])
            place = np.arange(layout.rows) if layout.place is None else layout.place
            rows[place.reshape(self._size, -1)] = normed
            self._leaves(work, counts, normed.shape[1])

    def _attend(self, work: Work) -> None:
        """The rank's heads for all tokens that came; what they add is made ready to go home, float32."""
        of, together = self._segments, self._of(work)
        weights, came = of.weights.layers[work.layer].attention, together.lane.gather
        with of.stage("attention", work, together.batch.rows):
            x = pack.unpack(pack.gather(came.arrived, came.landing.place), of.model.hidden, of.dtype)
            mixed = mix(self._local, weights, work.layer, x, together.batch, of.cache, together.seen)
            added = product(mixed, weights.o).view(np.uint16)
            rows, layout = together.lane.bring.room(together.rows, added.shape[1])
            rows[slice(None) if layout.place is None else layout.place] = added
            self._leaves(work, together.rows, added.shape[1])

    def _join(self, work: Work) -> None:
        """The parts that came are summed in float32, in the order of the ranks, and rounded once."""
        of, came = self._segments, self._of(work).lane.bring
        weights, together = of.weights.layers[work.layer].attention, self._of(work)
        with of.stage("attention", work, work.batch.rows):
            parts = pack.gather(came.arrived, came.landing.place).view(np.float32)
            total = np.zeros((work.batch.rows, of.model.hidden), np.float32)
            for part in parts.reshape(self._size, *total.shape):
                total += part
            if weights.o_bias is not None:
                total += weights.o_bias
            work.x = work.x + total.astype(of.dtype, copy=False)
        together.waits = False
        of.go_on(work)
