"""A micro-batch's way through all layers, as a generator that yields at every wait.

It knows no MPI and no arithmetic: it drives segments behind a small protocol, which may compute, replay a
graph, or cost simulated time. A segment takes the micro-batch's handle and nothing else.
"""

from collections.abc import Generator, Sequence
from typing import Any, Protocol

from hpcmoe.exchange.interface import Flight
from hpcmoe.types import Batch, Outcome

Step = Generator[Flight, None, Outcome]


class Segments(Protocol):
    """The pieces of a step between two waits. All are collective but `begin` and `head`."""

    moe_layers: Sequence[int]

    def begin(self, batch: Batch) -> Any:
        """The handle of a micro-batch."""

    def enter(self, work: Any) -> None:
        """Embedding, and all up to the first gate; its rows are ready to leave."""

    def announce(self, work: Any) -> Flight:
        """The counts of the rows leave."""

    def dispatch(self, work: Any) -> Flight:
        """The rows leave for their experts; what needs no rows from others runs meanwhile."""

    def expert(self, work: Any) -> None:
        """The rows that came are computed."""

    def collect(self, work: Any) -> Flight:
        """The answers leave for home."""

    def leave_enter(self, work: Any) -> None:
        """Answers are summed; then all up to the next gate, or to the last layer's end."""

    def head(self, work: Any) -> Outcome:
        """The next tokens."""


def step(segments: Segments, batch: Batch) -> Step:
    """One micro-batch through the whole model. Each yielded flight is to be waited for before the next turn."""
    work = segments.begin(batch)
    segments.enter(work)
    for _ in segments.moe_layers:
        yield segments.announce(work)
        yield segments.dispatch(work)
        segments.expert(work)
        yield segments.collect(work)
        segments.leave_enter(work)
    return segments.head(work)
