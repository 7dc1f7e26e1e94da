"""A micro-batch's way through all layers, as a generator that yields at every wait.

It knows no MPI and no arithmetic: it drives segments behind a small protocol, which may compute, replay a
graph, or cost simulated time. A segment takes the micro-batch's handle and nothing else.
"""

from collections.abc import Generator, Sequence
from typing import Any, Protocol

from hpcmoe.exchange.interface import Flight
from hpcmoe.types import Batch, Outcome

Step = Generator[Flight, None, Outcome]


class Team(Protocol):
    """The pieces of an attention whose heads are split over a team of ranks."""

    def meet(self, work: Any) -> Flight:
        """Before `enter`: the team tells each other which tokens it has. Collective over it, as all that follows."""

    def attends(self, work: Any) -> bool:
        """Whether an attention comes next: its tokens are ready to leave."""

    def gather(self, work: Any) -> Flight:
        """Tokens go to the whole team. Collective."""

    def attend(self, work: Any) -> Flight:
        """The rank's heads are computed, for the tokens of all."""

    def bring(self, work: Any) -> Flight:
        """What they add goes home. Collective."""

    def join(self, work: Any) -> Flight:
        """What all heads add is summed; then all up to the next gate or attention, or to the last layer's end."""

    def look(self, work: Any) -> None:
        """Behind the meeting, within `enter`: which tokens there are."""

    def ready(self, work: Any) -> None:
        """Before an attention, within what comes before it: the rank's tokens are made ready to leave."""

    def free(self) -> None:
        """Collective."""


class Segments(Protocol):
    """The pieces of a step between two waits. Those that compute return when their work is begun."""

    moe_layers: Sequence[int]
    exact: frozenset[int]
    """those of them where all ranks' rows are tallied before they are spread over replicas"""

    team: Team | None
    """where attention is split: `enter` and `leave_enter` then come to the next attention at most"""

    def go(self, rows: int) -> None:
        """Micro-batches that begin from now on have so many tokens at most on any rank: rows may travel by that."""

    def begin(self, batch: Batch, number: int) -> Any:
        """The handle of a micro-batch, the `number`-th of its step."""

    def enter(self, work: Any) -> Flight:
        """Embedding, and all up to the first gate; its rows are made ready to leave, but where `exact`."""

    def tally(self, work: Any) -> Flight:
        """The ranks tell each other how many rows they have for each expert, where `exact`. Collective."""

    def spread(self, work: Any) -> Flight:
        """Behind `tally`: rows are made ready to leave for the replicas."""

    def count(self, work: Any) -> Flight:
        """The ranks tell each other how many rows are to come. Collective."""

    def dispatch(self, work: Any) -> Flight:
        """Rows leave; what needs no rows from others is computed meanwhile. Collective."""

    def expert(self, work: Any) -> Flight:
        """The rows that came are computed."""

    def collect(self, work: Any) -> Flight:
        """The answers leave for home. Collective."""

    def leave_enter(self, work: Any) -> Flight:
        """Answers are summed; then all up to the next gate, or to the last layer's end."""

    def head(self, work: Any) -> Flight:
        """The next tokens."""

    def outcome(self, work: Any) -> Outcome:
        """What it all came to."""


def step(segments: Segments, batch: Batch, micro_batch: int = 0) -> Step:
    """One micro-batch through the whole model. Each yielded flight is to be waited for before the step goes on."""
    work = segments.begin(batch, micro_batch)
    if segments.team:
        yield segments.team.meet(work)
    computed = yield from _attended(segments.team, work, segments.enter(work))
    for layer in segments.moe_layers:
        yield computed
        if layer in segments.exact:
            yield segments.tally(work)
            yield segments.spread(work)
        yield segments.count(work)
        yield segments.dispatch(work)
        computed = segments.expert(work)
        yield computed
        yield segments.collect(work)
        computed = yield from _attended(segments.team, work, segments.leave_enter(work))
    yield computed
    yield segments.head(work)
    return segments.outcome(work)


def _attended(team: Team | None, work: Any, computed: Flight) -> Generator[Flight, None, Flight]:
    """By way of the team, where there is one, to what `computed` is where there is none."""
    while team:
        yield computed
        if not team.attends(work):
            break
        yield team.gather(work)
        yield team.attend(work)
        yield team.bring(work)
        computed = team.join(work)
    return computed
