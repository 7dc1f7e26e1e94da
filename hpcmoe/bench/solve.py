"""Steps simulated anew with other values of a machine, until they take as long as they did."""

from collections.abc import Callable, Sequence

import numpy as np

from hpcmoe.bench.machine import Measured
from hpcmoe.config import Schedule
from hpcmoe.predict.demand import Demand
from hpcmoe.predict.layout import Layout, bare
from hpcmoe.predict.machine import Hardware
from hpcmoe.predict.simulate import Given, Step, simulate

ENDLESS = 1e30
"""A rate at which nothing takes any time."""


def simulated(measured: Measured, hw: Hardware, ranks: int) -> Step:
    """The same step, predicted."""
    shape, spec = measured.shape, measured.shape.model(ranks)
    assert spec.moe
    sample = np.argsort(-measured.chosen[:1], axis=1)[:, :spec.moe.top_k].astype(np.int64)
    way = Schedule("overlapped" if shape.micro_batches > 1 else "serial", shape.micro_batches)
    given = Given(Demand(measured.chosen, sample), even=True)
    return simulate(spec, hw, Layout(ranks, bare(schedule=way)), given, [shape.batch]).steps[0]


def solved(seen: Callable[[np.ndarray], np.ndarray], wanted: np.ndarray, start: np.ndarray, little: np.ndarray,
           times: int, part: float = 1.0) -> np.ndarray:
    """Values `[m]`, none below 0, with which `seen` comes closest to `wanted`, both `[n]`, of all that were tried.

    What is seen is taken to grow by as much for each bit of a value: it is looked at anew with a `little` more of each
    `[m]`, all are set by least squares, and go that `part` of their way; so many times.
    """
    at, best, least = start, start, np.inf
    for left in reversed(range(times + 1)):
        base = seen(at)
        if (far := float(np.square(base - wanted).sum())) < least:
            best, least = at, far
        if not left:
            break
        grows = np.stack([(seen(at + more) - base) / more[n] for n, more in enumerate(np.diag(little))], axis=1)
        found = nonnegative(grows, wanted - base + grows @ at)
        at = np.where(grows.any(axis=0), at + part * (found - at), at)  # what nothing depends on stays
    return best


def nonnegative(columns: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Least squares of `columns @ x - wanted`, `[n, m]` and `[n]`, no x below 0: those that would be are left out."""
    kept = [n for n in range(columns.shape[1]) if columns[:, n].any()]
    out = np.zeros(columns.shape[1])
    while kept:
        scale = np.linalg.norm(columns[:, kept], axis=0)
        x = np.linalg.lstsq(columns[:, kept] / scale, wanted, rcond=None)[0] / scale
        if (x >= 0).all():
            out[kept] = x
            break
        kept.pop(int(np.argmin(x * scale)))
    return out


def seconds(found: Sequence[Measured], hw: Hardware, ranks: int) -> np.ndarray:
    """`[steps]`: of whole steps, in parts of what was measured."""
    return np.array([simulated(one, hw, ranks).seconds / one.seconds for one in found])
