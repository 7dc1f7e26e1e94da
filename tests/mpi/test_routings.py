"""Any routing, over every course that a step can take: equal bits, and those of the oracle within rounding."""

import itertools
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from conductor import Alarm, conduct
from models import TINY
from rig import COURSES, Rig
from routings import SLOTS, Example, Forced, examples, named, sequences

from hpcmoe import reference
from hpcmoe.engine import segments
from hpcmoe.exchange import staged
from hpcmoe.files.drawn import Drawn
from hpcmoe.types import Outcome

pytestmark = pytest.mark.mpi
CLOSE = 5e-5
"""Of the standard deviation of the logits."""
MODEL = replace(TINY, dense=None, context=TINY.vocabulary)
EXACT, OWN = "replicas with exactly equal parts", "an expert per rank"
EXPERTS = {"fewer experts than ranks": (lambda R: max(1, R // 2), "replicated"),
           EXACT: (lambda R: max(1, R // 2), "replicated exactly"),
           OWN: (lambda R: R, "in order"),
           "more experts than ranks": (lambda R: 2 * R + 1, "shuffled")}
"""E, and who holds them: one of `rig.HOLDERS`"""
WRECKS: list["Players"] = []
"""What exchanges that never ended may still write to: kept to the end."""


class Players:
    """One rig for each course, around the same weights, for one example after another. Collective.

    Sixteen ranks on two cores take eight times as long as two, so they get less to do.
    """

    def __init__(self, comm, alarm: Alarm, experts: int, holders: str) -> None:
        self.many = comm.size > 4
        self.parts = 2 if self.many else 3
        self._comm, self.alarm = comm, alarm
        layers = 1 if self.many else 2
        self.model = Drawn(replace(MODEL, layers=layers, moe=replace(MODEL.moe, experts=experts)), seed=7)
        self._read = cache(reference.reader(self.model))
        self._rigs = [Rig(comm, self.model, slots=SLOTS, length=MODEL.context, course=course, micro_batches=self.parts,
                          watch=alarm, holders=holders) for course in COURSES]

    def close(self) -> None:
        """Collective."""
        if self.alarm.broken:
            WRECKS.append(self)
            return
        for rig in self._rigs:
            rig.segments.free()

    def play(self, example: Example) -> list[str]:
        """An example along every course; what differs from the first course, or from the oracle. Collective."""
        played = []
        with pytest.MonkeyPatch.context() as patch:
            for rig in self._rigs:
                patch.setattr(segments, "gate", forced := Forced(example))
                played.append([rig.step(parts) for parts in example.batches(self._comm.rank)])
            patch.setattr(reference, "moe", forced.oracle)
            return _differences(example, played) or self._apart(example, played[-1])

    def _apart(self, example: Example, steps: list[list[Outcome]]) -> list[str]:
        logits = sequences(example, self._comm.rank, [[outcome.logits for outcome in step] for step in steps])
        problems = []
        for slot, got in logits.items():
            want = reference.logits(self.model.spec, self._read, example.tokens(self._comm.rank, slot)[:len(got)])
            far = np.abs(got - want).max() / want.std()
            if far > CLOSE:
                problems.append(f"{far:.1e} from the oracle in slot {slot}")
        return problems


def _differences(example: Example, played: list[list[list[Outcome]]]) -> list[str]:
    """Where each course begins to differ from the first; and rows that no load counts."""
    bits = [[(f"{part} in step {n}, micro-batch {m}", value) for n, step in enumerate(steps)
             for m, outcome in enumerate(step) for part, value in _bits(outcome).items()] for steps in played]
    problems = []
    for course, mine in zip(COURSES, bits):
        others = [where for (where, value), (_, first) in zip(mine, bits[0]) if value != first]
        problems += [f"{course}: other {where}" for where in others[:1]]
    for outcome in itertools.chain(*played[0]):
        if (outcome.load.sum(axis=1) != len(outcome.token) * example.top_k).any():
            problems.append(f"loads {outcome.load} of {len(outcome.token)} tokens")
    return problems


def _bits(outcome: Outcome) -> dict[str, bytes]:
    assert outcome.logits is not None
    return {"loads": outcome.load.tobytes(), "logits": outcome.logits.tobytes(), "tokens": outcome.token.tobytes(),
            "log-probabilities": outcome.logprob.tobytes()}


@pytest.fixture
def players(comm, request, monkeypatch) -> Iterator[Players]:
    """For a number of experts that stands in some relation to that of the ranks. Staged pieces are of few rows."""
    monkeypatch.setattr(staged, "PIECE", comm.size * 6 * MODEL.hidden * 4)
    with ExitStack() as ends:
        alarm = Alarm(comm)
        ends.callback(alarm.free)
        experts, holders = EXPERTS[request.param]
        players = Players(comm, alarm, experts(comm.size), holders)
        ends.callback(players.close)
        yield players


@pytest.mark.many_ranks(EXACT, OWN)
@pytest.mark.parametrize("players", EXPERTS, indirect=True)
def test_every_course_gives_equal_bits(comm, players):
    """In float32, at a fixed number of ranks and micro-batches; and what the oracle gives along the same routes."""
    R, E = comm.size, players.model.spec.experts
    first = named(R, E)[2 if players.many and E != R else 0:]
    conduct(comm, players.alarm, players.play, examples(R, E, players.parts), 1 if players.many else 8, first)


@pytest.mark.slow
@pytest.mark.parametrize("players", EXPERTS, indirect=True)
def test_every_course_gives_equal_bits_for_many_routings(comm, players):
    R, E = comm.size, players.model.spec.experts
    conduct(comm, players.alarm, players.play, examples(R, E, players.parts), 30 if players.many else 100, named(R, E))
