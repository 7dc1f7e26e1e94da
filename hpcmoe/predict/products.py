"""Seconds of matrix products, read off what was measured."""

from functools import lru_cache

import numpy as np

from hpcmoe.predict.machine import Products


@lru_cache(maxsize=16)
def _logs(table: Products) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logs of rows `[n]`, of values `[m]`, and of seconds per value `[m, n]`."""
    rows, values = (np.array(side, np.float64) for side in (table.rows, table.values))
    seconds = np.array(table.seconds, np.float64).reshape(len(rows), len(values))
    return np.log(rows), np.log(values), np.log(seconds / values).T


def seconds(table: Products, rows: np.ndarray, values: float) -> np.ndarray:
    """Of rows `[...]` float64 times a matrix of so many values; float64.

    Between the sizes of the table seconds per value are interpolated, in logarithms; more rows than it has take longer
    in proportion, other matrices as long a value as its smallest or largest. A part of a row, which is expected, takes
    that part of a row's time.
    """
    at, sizes, found = _logs(table)
    there = np.log(np.maximum(rows, 1.0))
    place = float(np.clip(np.interp(np.log(max(values, 1.0)), sizes, np.arange(len(sizes))), 0, len(sizes) - 1))
    low = min(int(place), max(len(sizes) - 2, 0))
    high = min(low + 1, len(sizes) - 1)
    part = place - low
    each = (1 - part) * np.interp(there, at, found[low]) + part * np.interp(there, at, found[high])
    beyond = np.maximum(there - at[-1], 0.0)
    return np.minimum(rows, 1.0) * values * np.exp(each + beyond)
