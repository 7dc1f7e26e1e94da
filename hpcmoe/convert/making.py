"""A model file made by all ranks: each fills its share of the tensors, and another run goes on where one ended."""

import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hpcmoe import launch, launcher, spec
from hpcmoe.convert.progress import open_progress
from hpcmoe.convert.ranks import Alone, Launched, Ranks, hushed
from hpcmoe.errors import CHECKPOINTED, HpcmoeError, size
from hpcmoe.files import lock, model, staged
from hpcmoe.files.lock import Held
from hpcmoe.files.model import Same, Source
from hpcmoe.files.staged import Staged
from hpcmoe.notice import Notice, words
from hpcmoe.spec import Tensor


@dataclass(frozen=True)
class Given:
    """What a model file is made of."""

    source: Source
    same: Same
    asked: Mapping[str, Any]
    """all that decides which bytes come of it, in what JSON holds"""


@dataclass(frozen=True)
class Order:
    """What is to be made."""

    output: Path
    dtype: str
    overwrite: bool
    """whether what was begun there and asked for differently is thrown away"""
    open: Callable[[], Given]
    """called once on each rank"""


class Told(Exception):
    """This rank is to end before its share is done."""


def make(order: Order) -> int:
    """Makes a model file; returns the exit code. Collective over the processes of a launcher.

    Raises `InputError` and `JobError` where there is no launcher; under one it says them.
    """
    notice = Notice()
    with notice.listening(signal.SIGINT):
        if launcher.tasks_by_launcher() == 1:
            return _make(Alone(), order, notice)
        launcher.end_with_launcher()
        world = launch.start()
        return launch.guarded(world, lambda: _make(Launched(world), order, notice))


def _make(ranks: Ranks, order: Order, notice: Notice) -> int:
    with ExitStack() as locked:
        opened: list[Given] = []
        made, held = ranks.on_root(lambda: _begin(order, opened, locked))
        source = ranks.together(lambda: opened[0] if opened else hushed(order.open)).source
        if made and not _fill(ranks, made, held, source, order.dtype, notice):
            return CHECKPOINTED
    if ranks.rank == 0:
        total = sum(t.values for t in spec.tensors(source.spec))
        print(f"{order.output}: {source.spec.name}, {total:,} values, {order.dtype}")
    return 0


def _begin(order: Order, opened: list[Given], locked: ExitStack) -> tuple[Staged | None, Held]:
    given = order.open()
    opened.append(given)
    held = locked.enter_context(lock.taken(order.output))
    made = model.begin(order.output, given.source, order.dtype, given.same, given.asked, order.overwrite)
    if made and made.done:
        print(f"hpcmoe: going on with {order.output}: {size(made.before)} of {size(made.total)} are there",
              file=sys.stderr, flush=True)
    return made, held


def _fill(ranks: Ranks, made: Staged, held: Held, source: Source, dtype: str, notice: Notice) -> bool:
    """Fills what is missing; whether the file is complete then. Raises what any rank failed with."""
    missing = [t for t in spec.tensors(source.spec) if t.name in made.places and t.name not in made.done]
    owners = shares([made.places[t.name][1] for t in missing], ranks.size)
    mine = [tensor for tensor, owner in zip(missing, owners) if owner == ranks.rank]
    shift = Shift(ranks, made, notice)
    written = shift.work(mine, source, dtype)
    ranks.together(shift.fail)
    reasons, counts = zip(*ranks.gather((notice.reason(), written)))
    filled = made.before + sum(counts)
    if filled == made.total:
        ranks.on_root(lambda: staged.finish(made, held.check))
    elif ranks.rank == 0:
        rank = next(rank for rank, reason in enumerate(reasons) if reason)
        print(f"hpcmoe: rank {rank}: {words(reasons[rank])}; {size(filled)} of {size(made.total)} are in "
              f"{staged.folder(made.output)}; the same command goes on", file=sys.stderr, flush=True)
    return filled == made.total


def shares(sizes: Sequence[int], ranks: int) -> np.ndarray:
    """The rank for each of some tensors `[n]`, ascending: equal bytes to each rank, within half a tensor at both ends.

    What lies together stays together: neighbours come from the same file.
    """
    ends = np.cumsum(sizes, dtype=np.int64)
    return (2 * ends - sizes) * ranks // (2 * ends[-1]) if len(sizes) else ends


class Shift:
    """A rank's work; all know how far the others are, and stop where one is told to, or fails."""

    def __init__(self, ranks: Ranks, made: Staged, notice: Notice) -> None:
        self._ranks, self._made, self._notice = ranks, made, notice
        self._progress = open_progress(ranks.rank, made.total, made.before)
        self._written = 0
        self._failure: HpcmoeError | None = None

    def work(self, mine: Sequence[Tensor], source: Source, dtype: str) -> int:
        """Fills these tensors, and waits for the others; the bytes of those that were filled. Collective."""
        committed = 0
        try:
            with staged.Writer(self._made, self._ranks.rank) as writer:
                try:
                    self._fill(writer, mine, source, dtype)
                finally:
                    writer.commit()
                committed = writer.committed
        except HpcmoeError as error:
            self._failure = error
        while self._look(ended=True)[1] < self._ranks.size:
            time.sleep(launch.NAP)
        self._progress.close()
        return committed

    def fail(self) -> None:
        """Raises what this rank failed with."""
        if self._failure:
            raise self._failure

    def _fill(self, writer: staged.Writer, mine: Sequence[Tensor], source: Source, dtype: str) -> None:
        with suppress(Told):
            for tensor in mine:
                writer.fill(tensor.name, self._through(model.as_stored(source, tensor, dtype)))

    def _through(self, blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """The same blocks. Raises `Told` behind one, where any rank wants to stop."""
        for block in blocks:
            yield block
            self._written += block.nbytes
            if self._look()[0]:
                raise Told

    def _look(self, ended: bool = False) -> tuple[int, int]:
        """How many ranks want to stop, and how many have ended, as known lately."""
        stop = bool(self._failure or self._notice.reason())
        written, stops, ends = self._ranks.sum(self._written, stop, ended)
        self._progress.update(self._made.before + written)
        return stops, ends
