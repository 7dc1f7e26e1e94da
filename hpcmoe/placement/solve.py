"""What policies take from SciPy. `JobError` where it is not installed."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from hpcmoe.errors import JobError


@contextmanager
def _installed() -> Iterator[None]:
    try:
        yield
    except ImportError:
        raise JobError("policies topology and quick need SciPy, which is not installed: pip install 'hpcmoe[plan]', or "
                       "give --policy load") from None


def assignment(cost: np.ndarray) -> np.ndarray:
    """`[rows]`: a column for each row, none twice, with the least sum; inf is never taken."""
    with _installed():
        from scipy.optimize import linear_sum_assignment
    return linear_sum_assignment(cost)[1]


def is_feasible(may: np.ndarray) -> bool:
    """Whether each row can have a column of its own where `may` `[rows, columns]` bool is true."""
    with _installed():
        from scipy.sparse import csr_array
        from scipy.sparse.csgraph import maximum_bipartite_matching
    return bool((maximum_bipartite_matching(csr_array(may), "column") >= 0).all())
