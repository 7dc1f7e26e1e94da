"""Many values as few, so that a picture of them says nothing wrong: sums stay sums, extremes stay in sight."""

import numpy as np

from hpcmoe.files.results import StepTable

MOST = 160
"""Bins of a picture, at most: each is wider than a point."""
CELLS = 512
"""Rows and columns of a map."""


def edges(wall: np.ndarray) -> np.ndarray:
    """`[n + 1]` float64 seconds: bins of the time that steps took, wall `[steps]`; one a step, or `MOST` equal ones."""
    ends = np.concatenate([[0.0], np.cumsum(wall)])
    return ends if len(wall) <= MOST else np.linspace(0.0, ends[-1], MOST + 1)


def tracks(steps: StepTable) -> list[tuple[float, np.ndarray]]:
    """Second at which it begins, and its rows in `steps`: of each group of ranks in each attempt. Groups step side by
    side, attempts follow each other."""
    found, begin = [], 0.0
    for attempt in np.unique(steps.attempt):
        mine = steps.attempt == attempt
        rows = [np.flatnonzero(mine & (steps.group == group)) for group in np.unique(steps.group[mine])]
        found += [(begin, some) for some in rows]
        begin += max(float(steps.wall[some].sum()) for some in rows)
    return found


def timeline(steps: StepTable) -> np.ndarray:
    """As `edges`, of a run; `MOST` equal bins at most where several groups stepped side by side."""
    if not steps.group.any():
        return edges(steps.wall)
    return np.linspace(0.0, steps.seconds, min(len(steps.wall), MOST) + 1)


def along(values: np.ndarray, steps: StepTable, at: np.ndarray) -> np.ndarray:
    """As `spread`, of all groups of a run together."""
    if not steps.group.any():
        return spread(values, steps.wall, at)
    return np.sum([spread(values[rows], steps.wall[rows], at, begin) for begin, rows in tracks(steps)], axis=0)


def spread(values: np.ndarray, wall: np.ndarray, at: np.ndarray, begin: float = 0.0) -> np.ndarray:
    """`[n]` float64: sums of values `[steps]` in the bins between at `[n + 1]`; the first step begins at `begin`. A
    step gives each bin its share by time; none is lost."""
    ends = begin + np.concatenate([[0.0], np.cumsum(wall)])
    so_far = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
    if len(at) == len(ends) and np.array_equal(at, ends):
        return np.diff(so_far)
    found = np.interp(at, ends, so_far)
    found[0], found[-1] = 0.0, so_far[-1]  # of steps that took no time
    return np.diff(found)


def over(values: np.ndarray, at: np.ndarray) -> np.ndarray:
    """values `[n]` over the widths of their bins; 0 in bins of no width."""
    width = np.diff(at)
    return np.divide(values, width, out=np.zeros(len(width)), where=width > 0)


def groups(count: int, most: int = MOST) -> np.ndarray:
    """`[n]` int64: where each of `most` groups of neighbours begins, of `count` values; few are each their own."""
    return np.unique(np.arange(min(count, most), dtype=np.int64) * count // max(min(count, most), 1))


def extremes(values: np.ndarray, most: int = MOST) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Where groups of values `[steps]` without NaN begin, and the least, the median and the largest of each."""
    first = groups(len(values), most)
    if not len(first):
        return first, values, values, values
    middle = np.array([np.median(part) for part in np.split(values, first[1:])])
    return first, np.minimum.reduceat(values, first), middle, np.maximum.reduceat(values, first)


def shrink(values: np.ndarray, reduce: np.ufunc, most: int = CELLS) -> np.ndarray:
    """values `[r, c]` with `most` rows and columns at most: neighbours put together by `reduce`."""
    for axis in (0, 1):
        if values.shape[axis] > most:
            values = reduce.reduceat(values, groups(values.shape[axis], most), axis=axis)
    return values


def percentile(values: np.ndarray, weights: np.ndarray, share: float) -> float:
    """The least of values `[n]` that `share` of the weights `[n]` do not exceed; NaN where they weigh nothing."""
    if not weights.sum():
        return float("nan")
    order = np.argsort(values, kind="stable")
    total = np.cumsum(weights[order], dtype=np.float64)
    return float(values[order][min(np.searchsorted(total, share * total[-1] * (1 - 1e-12)), len(order) - 1)])
