"""Headers and rows between real ranks: what arrives is what was sent, at every skew."""

import numpy as np
import pytest

from hpcmoe import launch
from hpcmoe.exchange import persistent
from hpcmoe.exchange.alltoallv import Alltoallv
from hpcmoe.exchange.headers import Headers
from hpcmoe.exchange.persistent import Persistent

pytestmark = pytest.mark.mpi


def message(source: int, target: int, rows: int, units: int) -> np.ndarray:
    """Rows that say where they come from."""
    i = np.arange(rows * units).reshape(rows, units)
    return ((i * 7 + source * 1001 + target * 17) % 65536).astype(np.uint16)


def tables(R: int) -> list[np.ndarray]:
    """Counts `[from, to]`: even, none, all to one, one row in all, only own, ragged, and crossing sizes."""
    rng = np.random.default_rng(5)
    one, single = np.zeros((2, R, R), int)
    one[:, R - 1] = 40
    single[0, R - 1] = 1
    return [np.full((R, R), 3), np.zeros((R, R), int), one, single, np.eye(R, dtype=int) * 4,
            rng.integers(0, 9, (R, R)), rng.integers(0, 2, (R, R)) * 100, rng.integers(0, 3, (R, R))]


@pytest.mark.parametrize("kind", [Alltoallv, Persistent])
def test_rows_arrive_whole_and_in_order(comm, everywhere, monkeypatch, kind):
    """Above 64 kB a rung, persistent requests give way to exact counts."""
    monkeypatch.setattr(persistent, "MOST", 1 << 16)
    R, me, problems = comm.size, comm.rank, []
    headers, rows = Headers(comm, launch.rest), kind(comm, launch.rest)
    for number, counts in enumerate(tables(R)):
        for units in (1, 8, 37):
            headers.start(counts[me], counts[:, me])
            headers.wait()
            incoming = headers.counts
            buffer = rows.buffer(int(counts[me].sum()), units)
            buffer[:] = np.concatenate([message(me, to, counts[me, to], units) for to in range(R)])
            rows.start(buffer, counts[me], incoming, headers.largest)
            rows.wait()
            want = np.concatenate([message(source, me, counts[source, me], units) for source in range(R)])
            others = counts - np.diag(np.diag(counts))
            if headers.largest != others.max() or headers.largest_home != others.max():
                problems.append(f"table {number}: {headers.largest}, {headers.largest_home} are not {others.max()}")
            if not np.array_equal(incoming, counts[:, me]):
                problems.append(f"table {number}: counts {incoming} for {counts[:, me]}")
            if not np.array_equal(rows.arrived, want):
                problems.append(f"table {number}, {units} units: rows differ")
    headers.free()
    rows.free()
    everywhere(problems)


def test_a_request_that_is_complete_can_be_asked_again(comm, everywhere):
    headers = Headers(comm, launch.rest)
    headers.start(np.arange(comm.size), np.arange(comm.size))
    headers.wait()
    first = headers.counts
    headers.wait()
    second = headers.counts
    headers.free()
    everywhere([] if (first == comm.rank).all() and (second == first).all() else [f"{first} then {second}"])
