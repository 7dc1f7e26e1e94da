"""The words between neighbours: what `model`, `exchange`, `placement` and `engine` hand to each other."""

from dataclasses import dataclass, field
from functools import cached_property
from math import nan

import numpy as np

from hpcmoe.traffic import Traffic


@dataclass(frozen=True)
class Span:
    """The rows of one sequence in a micro-batch: its next `rows` tokens, behind `cached` ones."""

    slot: int
    first: int
    rows: int
    cached: int


@dataclass(frozen=True)
class Batch:
    """A micro-batch of T tokens: pieces of sequences, each with the place where its past is kept."""

    token: np.ndarray
    """`[T]` int32"""
    position: np.ndarray
    """`[T]` int32, from 0 in each sequence"""
    spans: tuple[Span, ...]
    wanted: np.ndarray
    """`[B]` int32: the rows whose logits are asked for, ascending"""
    prompt: np.ndarray
    """`[B]` int64: the prompt of each wanted row, its row in the prompts file"""
    target: np.ndarray
    """`[B]` int32: the token that follows each wanted row, where it is known and only to be scored; else -1"""

    @property
    def rows(self) -> int:
        return len(self.token)


@dataclass(frozen=True)
class Route:
    """Where the gate sends each token, and what each answer weighs."""

    expert: np.ndarray
    """`[T, K]` int32"""
    weight: np.ndarray
    """`[T, K]` float32"""


@dataclass(frozen=True)
class Layout:
    """Where the rows for each rank, or from each, lie in a buffer: block after block, with gaps or without.

    Made by `dense`, `blocks` or `placed`, ahead of the exchange: its start has no time for arithmetic.
    """

    counts: np.ndarray
    """`[R]` int64: rows of each block"""
    first: np.ndarray
    """`[R]` int64: where each block begins"""
    rows: int
    """of all blocks"""
    extent: int
    """rows of the buffer"""
    own: slice
    """this rank's own block, which never enters MPI"""
    travels: tuple[np.ndarray, np.ndarray]
    """counts without this rank's own, and first rows, `[R]` int32 each: as MPI takes them"""
    straight: bool = True
    """whether the blocks lie in the order of the ranks"""

    @cached_property
    def place(self) -> np.ndarray | None:
        """`[rows]` int64: where each row lies, in the order of the ranks; None where they fill the buffer in it."""
        if self.rows == self.extent and self.straight:
            return None
        return np.repeat(self.first - (np.cumsum(self.counts) - self.counts), self.counts) + np.arange(self.rows)

    def at(self, row: np.ndarray) -> np.ndarray:
        """Where rows lie, that are numbered in the order of the ranks; -1 is none, and stays."""
        return row if self.place is None else np.where(row < 0, -1, self.place[row])


def dense(counts: np.ndarray, me: int) -> Layout:
    """Blocks without gaps, seen from rank `me`; counts `[R]` integers."""
    ends = np.cumsum(counts)
    return placed(counts, me, ends - counts, int(ends[-1]), int(ends[-1]))


def blocks(counts: np.ndarray, me: int, capacity: int) -> Layout:
    """Blocks of one size, `capacity` rows, each filled from its beginning; counts `[R]` integers."""
    return placed(counts, me, np.arange(len(counts)) * capacity, int(counts.sum()), len(counts) * capacity)


def placed(counts: np.ndarray, me: int, first: np.ndarray, rows: int, extent: int, straight: bool = True) -> Layout:
    """Blocks of `rows` rows together that begin at first `[R]`, in a buffer of `extent`; counts `[R]` integers."""
    others = counts.astype(np.int32)
    others[me] = 0
    at = int(first[me])
    return Layout(counts, first, rows, extent, slice(at, at + int(counts[me])), (others, first.astype(np.int32)),
                  straight)


@dataclass(frozen=True)
class Extent:
    """How much one exchange moves; the same on all ranks."""

    largest: int
    """the most rows that any rank has for any one, itself included"""
    total: int
    """the most rows that any rank sends to all others"""
    late: bool = False
    """whether each rank starts it when it gets there, between other exchanges than others do: nothing may be made for
    it that all must make together"""


@dataclass(frozen=True)
class Speeds:
    """How long one direction of an exchange takes with each mode, as measured; the same on all ranks."""

    size: np.ndarray
    """`[n]` float64 ascending: bytes from each rank to each other"""
    alltoallv: np.ndarray
    """`[n]` float64 seconds"""
    persistent: np.ndarray
    """`[n]` float64 seconds"""

    def persistent_pays(self, padded: int, exact: float) -> bool:
        """Whether `padded` bytes to each peer are sooner there by a persistent request than `exact` ones by counts."""
        return bool(np.interp(padded, self.size, self.persistent) < np.interp(exact, self.size, self.alltoallv)
                    and padded <= self.size[-1])


GAIN = 0.97
"""A step is cut where that was measured to take less than this part of its time: smaller gains are noise."""


@dataclass(frozen=True)
class Cuts:
    """How long a step takes as one micro-batch, and as two that take turns, as measured; the same on all ranks."""

    rows: np.ndarray
    """`[n]` int64 ascending: tokens of the step on each rank"""
    whole: np.ndarray
    """`[n]` float64 seconds"""
    halves: np.ndarray
    """`[n]` float64 seconds"""

    def pays(self, rows: int) -> bool:
        """Whether to cut a step of `rows` tokens on the fullest rank; between two measurements, by both."""
        return bool(np.interp(np.log(max(rows, 1)), np.log(self.rows), self.halves / self.whole) < GAIN)


@dataclass(frozen=True)
class Hops:
    """How long dispatch and return take flat, and by way of relays, as measured; the same on all ranks."""

    rows: np.ndarray
    """`[n]` int64 ascending: tokens on each rank"""
    flat: np.ndarray
    """`[n]` float64 seconds"""
    twohop: np.ndarray
    """`[n]` float64 seconds"""

    def pays(self, rows: int) -> bool:
        """Whether relays are faster for `rows` tokens on the fullest rank; between two measurements, by both."""
        return bool(np.interp(np.log(max(rows, 1)), np.log(self.rows), np.log(self.twohop / self.flat)) < 0)


@dataclass(frozen=True)
class SendPlan:
    """How the rows of a micro-batch leave, and where their answers come home.

    A token goes to a rank once, with a trailer that lists the slots there; it comes home once for
    each of its K experts. Both ways are ordered by (rank, token), the way home then by k.
    """

    token: np.ndarray
    """`[N]` int32: the token of each row that leaves"""
    trailer: np.ndarray
    """`[N, W]` int16: slots on the destination rank, -1 behind the last; W = 0 where a rank has one"""
    counts: np.ndarray
    """`[R]` int64: rows that leave for each rank"""
    home: np.ndarray
    """`[T, K]` int32: the row that answers (token, k), among those that come home; of t shards `[T, K * t]`"""
    home_counts: np.ndarray
    """`[R]` int64: rows that come home from each rank"""
    behind: tuple[np.ndarray, np.ndarray] | None = None
    """`[R]` int64 each, where the ranks above are relays: rows that each rank gets in the end, and answers it gives"""


@dataclass(frozen=True)
class ReceivePlan:
    """What a rank does with M received rows: which slot computes which, and in what order they return."""

    row: np.ndarray
    """`[M]` int32: the received row of each computed row; computed rows are ordered by (slot, source, token)"""
    place: np.ndarray
    """`[M]` int32: where each computed row goes among those that return"""
    slot_counts: np.ndarray
    """`[slots]` int64: computed rows of each slot of this rank"""
    home_counts: np.ndarray
    """`[R]` int64: rows that return to each rank"""


SAMPLED = 64
"""Tokens of a micro-batch whose experts are kept, at most."""


def sampled(tokens: int) -> np.ndarray:
    """`[s]` int64: which tokens of a micro-batch of T are sampled, as far apart as can be."""
    count = min(SAMPLED, tokens)
    return -(-np.arange(count) * tokens // max(count, 1))


@dataclass(frozen=True)
class Outcome:
    """What a micro-batch came to: one entry for each wanted row."""

    token: np.ndarray
    """`[B]` int32: the next token, chosen or given"""
    logprob: np.ndarray
    """`[B]` float32: its log-probability"""
    load: np.ndarray
    """`[L, E]` int64: (token, k) pairs that were sent to each expert; zeros for dense layers"""
    computed: np.ndarray
    """`[L]` int64: rows that this rank's experts computed, for whichever ranks"""
    moved: np.ndarray
    """`[L]` int64: (token, k) pairs that would have gone to other experts without a bias; zeros where there is none"""
    sample: np.ndarray
    """`[s, L, K]` int16: the experts of `sampled(T)` tokens in each layer; -1 in dense layers"""
    logits: np.ndarray | None = field(default=None, repr=False)
    """`[B, V]` float32, where they were asked for"""


MODES = ("alltoallv", "persistent")
"""How rows travel: by exact counts, or by requests of fixed capacities."""
TRANSPORTS = ("device", "staged")
"""Whence: from where they are computed, or by way of the host's memory."""

STAGES = ("attention", "gate", "pack", "exchange", "expert", "combine", "head")
"""The stages of a step whose seconds are kept: attention with norms and dense layers; gate; rows and
counts made ready to leave; waiting for counts and rows; experts; answers summed; head and choice."""


@dataclass(frozen=True)
class StepTime:
    """What one step of one rank took."""

    step: int
    tokens: int
    """tokens that this rank computed"""
    chosen: int
    """new tokens that this rank chose"""
    wall: float
    """seconds of the whole step"""
    stages: np.ndarray
    """`[len(STAGES)]` float64 seconds"""
    traffic: Traffic = field(default_factory=Traffic.none)
    """of the step's exchanges"""


@dataclass(frozen=True)
class Begun:
    """An answer that has begun, in a form in which any rank goes on with it.

    It is all of a sequence's state: keys and values are computed again, and a draw belongs to (seed, prompt, position).
    """

    prompt: int
    """its row in the prompts file"""
    tokens: np.ndarray
    """`[n]` int32: the new tokens so far"""
    logprobs: np.ndarray
    """`[n]` float32"""
    first: float = nan
    """as an `Answer` has it"""


@dataclass(frozen=True)
class Answer:
    """A finished prompt."""

    prompt: int
    """its row in the prompts file"""
    tokens: np.ndarray
    """`[n]` int32: the new tokens, the stop token included; the prompt's own where it was scored"""
    logprobs: np.ndarray
    """`[n]` float32; NaN for a first token, which nothing predicts"""
    stop: str
    """eos, length or context; scored"""
    first: float = nan
    """seconds to its first new token, see `files.first`; NaN where it was scored, or they are not known"""
