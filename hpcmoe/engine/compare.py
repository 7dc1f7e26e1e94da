"""What a selection bias costs: the prompts of a job scored with it and without, behind the job's last step."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from hpcmoe.config import Job
from hpcmoe.engine.batch import Sequences
from hpcmoe.engine.device import RankSegments
from hpcmoe.engine.generate import Tally, Vote, generate
from hpcmoe.engine.memory import Sizes
from hpcmoe.engine.pool import Pool
from hpcmoe.engine.progress import Silence
from hpcmoe.engine.ways import Turns
from hpcmoe.files.prompts import Prompts
from hpcmoe.notice import Notice
from hpcmoe.types import Answer

SCORED = 1 << 13
"""Tokens of prompts that are scored, about."""


class Scores:
    """Takes the place of a `Record`, and adds up what was scored."""

    def __init__(self) -> None:
        self.tokens, self.nats = 0, 0.0

    def add(self, answers: Sequence[Answer], *of_the_step: object) -> None:
        """See `Record`."""
        for answer in answers:
            known = answer.logprobs[1:].astype(np.float64)  # nothing predicts the first
            self.tokens, self.nats = self.tokens + len(known), self.nats - float(known.sum())

    def wait(self, unfinished: Callable[[], object]) -> None:
        """See `Record`."""


def some(prompts: Prompts, rows: np.ndarray) -> list[int]:
    """Rows whose prompts have about `SCORED` tokens to be scored together, far apart; all where those are fewer."""
    lengths = prompts.lengths[rows]
    rows, total = rows[lengths > 1], int(lengths[lengths > 1].sum())
    return rows[::max(1, total // SCORED)].tolist()


def score(vote: Vote, rank: int, prompts: Prompts, rows: Sequence[int], job: Job, sizes: Sizes, segments: RankSegments,
          turns: Turns, step: int) -> tuple[int, float]:
    """How many tokens this rank scored, and minus the sum of their log-probabilities [nat]. Collective.

    rows: of `prompts`, the same on all ranks; step: the number that the first one gets in a trace.
    """
    scores = Scores()
    sequences = Sequences(segments.model, replace(job, mode="score"), sizes.sequences, sizes.tokens)
    generate(vote, rank, Pool(prompts, rows), sequences, segments, turns, scores, Silence(), Notice(),
             Tally(len(rows), step))
    return scores.tokens, scores.nats
