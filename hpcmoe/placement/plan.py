"""Which rank holds which expert."""

import numpy as np

from hpcmoe.types import Placement


def linear(experts: int, ranks: int) -> Placement:
    """Experts in order over the ranks, as even as can be.

    One slot per rank where E = R. Where E > R, slots per rank differ by at most one. Where E < R, the spare
    ranks lie evenly between the others; they serve sequences.
    """
    rank = np.arange(experts) * ranks // experts
    return Placement(ranks, rank.astype(np.int32), np.arange(experts, dtype=np.int32))
