"""Sums of a token's answers in their node, so that one row of them goes home: `exchange.presum`."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from hpcmoe import array

BLOCK = 1 << 18
"""Values that are summed at once in the host's memory: more would leave its caches."""


@dataclass(frozen=True)
class Presum:
    """How relays sum.

    Each adds weight * answer over the answers of its node, in float32 and in the order of k, and rounds the sum once to
    the rows' dtype. The source adds the sums of the nodes in float32 in their order, and rounds once. So the result
    depends on which answers share a node and on the order of the nodes; not on the source, its own node, relays, ranks
    inside a node, or how rows travel. Where nothing overflows, it differs from the exact sum, but for the last
    rounding, by at most

        u * sum over nodes |sum of the node| + (K + N) * 2**-23 * sum over k |weight * answer|

    with u = 2**-8 for bfloat16 and 2**-24 for float32 (N. J. Higham, Accuracy and Stability of Numerical Algorithms,
    2nd ed., section 3.1; that what is rounded has errors already is taken up by the factor of 2 in 2**-23), and half of
    the smallest subnormal number for each rounding that ends among those.
    """

    dtype: np.dtype
    """of the rows"""
    round_each: bool = False
    """as in `kernels.combine`"""

    def sum(self, rows: Any, home: np.ndarray, weight: np.ndarray, out: Any) -> None:
        """Sums of the answers home `[M, K]` int32 among rows `[A, units]` uint16, to out `[M, units]`.

        Where home is -1 there is no answer; weight `[M, K]` float32. rows and out lie in one memory, maybe a GPU's.
        """
        width = rows.shape[1] * 2 // self.dtype.itemsize
        step = max(1, BLOCK // width) if isinstance(rows, np.ndarray) else max(1, len(home))
        for first in range(0, len(home), step):
            part = slice(first, first + step)
            out[part] = self._narrow(self._total(rows, home[part], weight[part], width))

    def _total(self, rows: Any, home: np.ndarray, weight: np.ndarray, width: int) -> Any:
        """`[M, width]` float32."""
        total = array.module(rows).zeros((len(home), width), np.float32)
        for k in range(home.shape[1]):
            there = np.flatnonzero(home[:, k] >= 0)
            at, answers, weights = (array.beside(values, rows) for values in (there, home[there, k], weight[there, k]))
            part = weights[:, None] * self._wide(rows[answers])
            total[at] += self._wide(self._narrow(part)) if self.round_each else part
        return total

    def _wide(self, rows: Any) -> Any:
        return rows.view(np.float32) if self.dtype == array.FLOAT32 else array.widen(rows)

    def _narrow(self, values: Any) -> Any:
        return values.view(np.uint16) if self.dtype == array.FLOAT32 else array.narrow(values)
