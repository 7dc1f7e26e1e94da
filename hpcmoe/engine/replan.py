"""Other experts in the ranks' slots as the load moves: planned and read beside the steps, in place between two."""

import sys
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from hpcmoe.engine.loads import Loads
from hpcmoe.model.weights import Swiglu
from hpcmoe.placement.adapt import adapted, loads, uneven
from hpcmoe.slots import Placement, Placements


@dataclass(frozen=True)
class Move:
    """What becomes of one layer."""

    layer: int
    before: Placement
    after: Placement
    uneven: tuple[float, float]
    """(max − mean) / mean of the ranks' rows, before and after, by the rows that it was planned for"""

    def comes(self, rank: int) -> dict[int, int]:
        """Slot of a rank, from 0 -> the expert that comes into it."""
        pairs = zip(self.before.held_by(rank), self.after.held_by(rank))
        return {slot: after for slot, (before, after) in enumerate(pairs) if before != after}

    @property
    def slots(self) -> int:
        """How many get another expert, on all ranks."""
        return int((self.before.expert != self.after.expert).sum())


Read = Callable[[int, list[int]], Sequence[Swiglu]]
"""(layer, experts) -> their weights; called from a thread of its own"""

Change = Callable[[int, Placement, dict[int, Swiglu]], dict[int, Swiglu]]
"""(layer, its placement from now on, this rank's slots that change and what they hold then) -> what they held before"""


def plan(placements: Placements, rows: np.ndarray) -> list[Move]:
    """The layers that are worth a change; rows `[L, E]`. All ranks come to one answer."""
    found = []
    for layer, whole in enumerate(placement.grouped for placement in placements):
        if rows[layer].any() and (after := adapted(whole, rows[layer])) is not whole:
            before = placements[layer]
            found.append(Move(layer, before, after.cut(before.shards), tuple(  # type: ignore[arg-type]
                uneven(loads(placement, rows[layer])) for placement in (whole, after))))
    return found


class Replans:
    """Looks at the rows of every so many steps, and moves what that makes worth moving, layer by layer: a rank has room
    for one layer's new experts beside its own. A `generate.Balance`. Collective, as `loads` is.

    Whatever takes time runs in a thread; the ranks go on to the next thing in the same vote, when all are ready for it.
    """

    def __init__(self, loads: Loads, every: int, placements: Placements, rank: int, shape: tuple[int, int],
                 change: Change, read: Read, label: str = "") -> None:
        """`every` in steps; shape is (L, E); `label` as in `launch.World`."""
        self._loads, self._every, self._rank, self._change, self._read = loads, every, rank, change, read
        self._label = label
        self._placements, self._rows = list(placements), np.zeros(shape, np.int64)
        self._steps = self.taken = 0
        self._task: Future | None = None
        self._moves: list[Move] = []
        """of the plan that is being carried out; empty while there is none"""
        self._last: tuple[Move, dict[int, Swiglu]] | None = None
        """what the last vote changed, and what was there before"""
        self._thread = ThreadPoolExecutor(1, "replan")

    @property
    def ready(self) -> int:
        """Tasks that this rank has done so far: what it says in a vote."""
        return self.taken + bool(self._task and self._task.done())

    def add(self, load: np.ndarray) -> None:
        """Takes up the rows of a step; load `[L, E]` int64 are this rank's."""
        self._rows += load
        self._steps += 1

    def between(self, ready: np.ndarray, step: int) -> None:
        """What is due before step number `step`; ready `[R]` is what all ranks said in one vote. Raises `InputError`
        where experts cannot be read."""
        self._last = None  # all saw the vote before
        if self._loads.started:
            self._task = self._thread.submit(plan, self._placements, self._loads.wait())
        elif self._task and (ready > self.taken).all():
            self._take(self._task.result(), step)
        elif not self._task and self._moves:
            move = self._moves[0]
            self._task = self._thread.submit(self._read, move.layer, list(move.comes(self._rank).values()))
        elif not self._task and self._steps >= self._every:
            self._loads.start(self._rows)
            self._rows[...], self._steps = 0, 0

    def _take(self, found: Any, step: int) -> None:
        """The end of a task: a reading's, or a plan's."""
        self.taken, self._task = self.taken + 1, None
        if self._moves:
            move = self._moves.pop(0)
            self._placements[move.layer] = move.after
            self._last = move, self._change(move.layer, move.after, dict(zip(move.comes(self._rank), found)))
        else:
            self._moves = found
            if found and self._rank == 0:
                print(f"hpcmoe: {self._label}behind step {step}: {_words(found)}", file=sys.stderr, flush=True)

    def undo(self, taken: int) -> None:
        """See `generate.Balance`."""
        if self.taken > taken and self._last:
            move, before = self._last
            self._change(move.layer, move.before, before)
            self._last = None

    def close(self) -> None:
        """No task is begun any more, and none is under way. Local."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    def free(self) -> None:
        """Collective."""
        self.close()
        self._loads.free()


def _words(moves: Sequence[Move]) -> str:
    before, after = np.mean([move.uneven for move in moves], axis=0)
    return (f"{sum(move.slots for move in moves)} slots in {len(moves)} layers get other experts; (max-mean)/mean of "
            f"the ranks' rows there was {before:.2f}, {after:.2f} are expected")
