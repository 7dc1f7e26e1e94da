"""Attention whose heads are split over a team of neighbouring ranks, on a GPU. A `layer.Team`; its twin: `split`."""

from typing import TYPE_CHECKING

import cupy
import numpy as np

from hpcmoe.device import rows
from hpcmoe.device.cuda import Event, Mirror
from hpcmoe.engine.attends import Place
from hpcmoe.engine.rank_team import RankTeam
from hpcmoe.engine.room import Work
from hpcmoe.engine.together import Split
from hpcmoe.exchange.interface import Rows
from hpcmoe.exchange.team import TeamLane
from hpcmoe.types import Extent, Layout

if TYPE_CHECKING:
    from hpcmoe.engine.gpu import GpuSegments


class TeamRoom:
    """What a micro-batch needs on the device for the tokens of its team, of which a rank has `tokens` at most."""

    def __init__(self, hidden: int, tokens: int, ranks: int) -> None:
        self.x, self.adds = (cupy.empty((ranks * tokens, hidden), kind) for kind in (np.uint16, np.float32))
        self.added = cupy.empty((tokens, hidden), np.uint16)
        self.place, self.source, self.target = Place(ranks * tokens), Mirror(np.int32), Mirror(np.int32)
        self.base = Mirror(np.int32, ranks)


class GpuTeam(RankTeam):
    """A rank's heads, and its team's tokens."""

    def __init__(self, segments: "GpuSegments", split: Split, lanes: list[TeamLane], rooms: list[TeamRoom],
                 slots: int) -> None:
        """`slots` are those of one rank."""
        super().__init__(segments, split, lanes, slots)
        self._segments, self._rooms = segments, rooms

    def _start(self, work: Work, rows: Rows, incoming: Layout, extent: Extent) -> None:
        with self._segments.travel:
            rows.start(incoming, extent)
            work.own = Event(self._segments.travel)

    def look(self, work: Work) -> None:
        """See `layer.Team`."""
        together, room = self._of(work), self._rooms[work.number]
        together.look(self._slots)
        together.seen = room.place.send(together.batch, self._segments.blocks.attends.by_cudnn)

    def ready(self, work: Work) -> None:
        """See `layer.Team`: the tokens, normed, are in the micro-batch's room."""
        together, T, H = self._of(work), work.batch.rows, self._segments.model.hidden
        counts = np.full(self._size, T)
        out, layout = together.lane.gather.room(counts, H)
        for first in layout.first.tolist():
            out[first:first + T] = work.room.normed[:T]
        self._leaves(work, counts, H)

    def attend(self, work: Work) -> Event:
        """See `layer.Team`."""
        of, together, room = self._segments, self._of(work), self._rooms[work.number]
        weights, n = of.weights.layers[work.layer].attention, together.batch.rows
        x, adds, came = room.x[:n], room.adds[:n], together.lane.gather
        out, layout = together.lane.bring.room(together.rows, 2 * of.model.hidden)

        def heads() -> None:
            with of.blocks.stage("attention", work, n):
                of.blocks.gemm(of.blocks.attends(weights, work.layer, together.seen, x), weights.o, adds)
        with of.compute:
            work.own.hold(of.compute)
            place = came.landing.place
            rows.take(came.arrived, None if place is None else room.source.send(place), n, of.model.hidden, x)
            of.blocks.alone(work, together.batch, heads)
            found = adds.view(np.uint16)
            if layout.place is None:
                out[:n] = found
            else:
                rows.put(found, room.target.send(layout.place), out)
        self._leaves(work, together.rows, out.shape[1])
        return Event(of.compute)

    def join(self, work: Work) -> Event:
        """See `layer.Team`."""
        of, together, room = self._segments, self._of(work), self._rooms[work.number]
        came, added = together.lane.bring, room.added[:work.batch.rows]
        bias = of.weights.layers[work.layer].attention.o_bias
        together.waits = False
        with of.compute:
            work.own.hold(of.compute)
            with of.blocks.stage("attention", work, len(added)):
                rows.join(came.arrived.view(np.float32), room.base.send(came.landing.first), bias, added)
            of.blocks.behind(work, added)
            of.go_on(work)
        return Event(of.compute)
