"""`compute.reproducible`: equal bits at 1, 2, 4, 8 and 16 ranks, along courses of every kind, in steps of any size,
whoever holds the experts."""

import hashlib
import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
from conductor import Alarm, conduct
from hypothesis import strategies as st
from models import batch
from mpi4py import MPI
from rig import COURSES, HOLDERS, Course, Rig
from routings import SKEWS, Example, Forced

from hpcmoe.engine import segments
from hpcmoe.engine.batch import split
from hpcmoe.exchange import staged
from hpcmoe.exchange.interface import until
from hpcmoe.files.drawn import Drawn
from hpcmoe.kernels import rows
from hpcmoe.spec import Attention, ModelSpec, Moe

pytestmark = pytest.mark.mpi
SPEC = ModelSpec("wide", layers=2, hidden=256, vocabulary=97, context=80, attention=Attention(8, 4, 32), dense=None,
                 moe=Moe(experts=8, top_k=2, hidden=384))
"""Wide enough for BLAS to take other kernels for other numbers of rows."""
SIZES = (1, 2, 4, 8, 16)
CHUNKS = (70, 17, 33, 24, 40)
"""Tokens of each sequence in a step: sequences go through in steps of different sizes."""
OWN = "the gate's own"


@dataclass(frozen=True)
class Prompts:
    """Sequences, and how their tokens are routed."""

    lengths: tuple[int, ...]
    skew: str
    top_k: int = 2
    seed: int = 0

    def tokens(self, number: int) -> list[int]:
        """Of one sequence."""
        return np.random.default_rng([self.seed, number]).integers(0, SPEC.vocabulary, self.lengths[number]).tolist()


LONG = (31, 64, 47, 33, 70, 30, 52, 40, 1)
FIRST = [Prompts(LONG, OWN), Prompts(LONG, "one", 1), Prompts(LONG, "even", 8), Prompts((1,), "hot")]
DRAWN = st.builds(Prompts, st.lists(st.integers(1, 70), min_size=1, max_size=9).map(tuple), st.sampled_from(SKEWS),
                  st.integers(1, SPEC.moe.experts), st.integers(0, 999))


class Players:
    """The same prompts on some of the ranks, then on others. Collective over `comm`."""

    def __init__(self, comm, alarm: Alarm) -> None:
        self._comm, self._alarm = comm, alarm
        sizes = [size for size in SIZES if size <= comm.size]
        some = COURSES[::5] + COURSES[1::5] + COURSES[2::5]
        hops = [course._replace(hops=n in (2, 4)) for n, course in enumerate(some)]
        self._plays = list(zip(itertools.cycle(sizes), hops, itertools.cycle((1, 2, 3)), itertools.cycle(CHUNKS),
                               itertools.cycle(HOLDERS)))[:max(4, len(sizes))]

    def play(self, prompts: Prompts) -> list[str]:
        """Says on rank 0 where bits differ from those on one rank."""
        with pytest.MonkeyPatch.context() as patch:
            if prompts.skew != OWN:
                patch.setattr(segments, "gate", Forced(Example((), prompts.top_k, prompts.skew, seed=prompts.seed)))
            found = [self._on_some(prompts, *play) for play in self._plays]
        return [f"{size} ranks, {course}, {parts} micro-batches of {chunk} tokens a sequence, experts {holders}: "
                f"{[i for i in sorted(got) if got[i] != found[0][i]]} differ"
                for (size, course, parts, chunk, holders), got in
                zip(self._plays, found) if got != found[0]] if self._comm.rank == 0 else []

    def _on_some(self, prompts: Prompts, size: int, course: Course, parts: int, chunk: int,
                 holders: str) -> dict[int, str]:
        """A digest of the logits of each sequence, from the first `size` ranks; the others wait."""
        self._alarm.mark()
        some, found = self._comm.Split(0 if self._comm.rank < size else MPI.UNDEFINED), {}
        if some != MPI.COMM_NULL:
            found = self._digests(some, prompts, course, parts, chunk, holders)
            some.Free()
        until(self._comm.Ibarrier().Test, self._wait)
        return {i: digest for part in self._comm.allgather(found) for i, digest in part.items()}

    def _wait(self) -> None:
        """Leaves the cores to those who play."""
        self._alarm.idle()
        time.sleep(0.002)

    def _digests(self, comm, prompts: Prompts, course: Course, parts: int, chunk: int,
                 holders: str) -> dict[int, str]:
        """Of the sequences of this rank. Collective over `comm`."""
        mine = [i for i in range(len(prompts.lengths)) if (i * 5 + 2) % comm.size == comm.rank]
        tokens, found = {i: prompts.tokens(i) for i in mine}, {i: hashlib.blake2b(digest_size=8) for i in mine}
        with Rig(comm, Drawn(SPEC, seed=5), slots=len(prompts.lengths), length=SPEC.context, course=course,
                 micro_batches=parts, watch=self._alarm,
                 holders=holders, seed=prompts.seed,
                 top_k=prompts.top_k) as rig:
            for first in range(0, max(prompts.lengths), chunk):
                pieces = [(i, first, tokens[i][first:first + chunk]) for i in mine if first < len(tokens[i])]
                batches = split(batch(*pieces), parts)
                for part, outcome in zip(batches, rig.step(batches)):
                    for span in part.spans:
                        found[span.slot].update(outcome.logits[span.first:span.first + span.rows].tobytes())
        return {i: digest.hexdigest() for i, digest in found.items()}


@pytest.fixture
def alone(monkeypatch) -> Iterator[None]:
    """Rows are computed alone, and staged pieces are of few rows."""
    monkeypatch.setattr(staged, "PIECE", 1 << 16)
    rows.compute_alone(True)
    yield
    rows.compute_alone(False)


def test_the_same_bits_at_any_number_of_ranks(comm, alone):
    """Of the long prompts. Without `reproducible` all of these have other last bits at every other number of ranks,
    and with other chunks (OpenBLAS 0.3.31 on an AMD EPYC)."""
    alarm = Alarm(comm)
    conduct(comm, alarm, Players(comm, alarm).play, DRAWN, 2 if comm.size > 4 else 4, FIRST)
    alarm.free()
