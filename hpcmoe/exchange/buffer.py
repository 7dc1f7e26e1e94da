"""Memory for rows."""

import numpy as np


class Buffer:
    """Rows of any number, in memory that grows by doubling and is kept."""

    def __init__(self) -> None:
        self._memory = np.empty(0, np.uint16)

    def take(self, rows: int, units: int) -> np.ndarray:
        """`[rows, units]` uint16. What was there before is lost."""
        if rows * units > len(self._memory):
            self._memory = np.empty(max(rows * units, 2 * len(self._memory)), np.uint16)
        return self._memory[:rows * units].reshape(rows, units)


def copy_own(me: int, rows: np.ndarray, counts: np.ndarray, arrived: np.ndarray, incoming: np.ndarray) -> None:
    """A rank's own rows never enter MPI: from their place among `rows` to that among those that arrive."""
    first, into = int(counts[:me].sum()), int(incoming[:me].sum())
    arrived[into:into + int(incoming[me])] = rows[first:first + int(counts[me])]
