"""Headers and rows between real ranks: what arrives is what was sent, at every skew."""

import itertools

import numpy as np
import pytest
from mpi4py import MPI
from rig import WAYS

from hpcmoe import launch
from hpcmoe.exchange import persistent, staged
from hpcmoe.exchange.alltoallv import Alltoallv
from hpcmoe.exchange.buffer import RowTypes
from hpcmoe.exchange.headers import Headers
from hpcmoe.exchange.interface import until
from hpcmoe.exchange.lane import Way, open_rows
from hpcmoe.exchange.requests import make_pairs, make_request
from hpcmoe.exchange.staged import Staged
from hpcmoe.kernels import pack
from hpcmoe.types import Extent, blocks, dense

pytestmark = pytest.mark.mpi
start = Alltoallv.start


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


@pytest.mark.many_ranks("alltoallv-device", "persistent-device", "auto-staged")
@pytest.mark.parametrize("way", WAYS, ids=lambda way: f"{way.mode}-{way.transport}")
def test_rows_arrive_whole_and_in_order(comm, everywhere, monkeypatch, way):
    """Above 64 kB a rung, persistent requests give way to exact counts; pieces are of a few rows."""
    monkeypatch.setattr(persistent, "MOST", 1 << 16)
    monkeypatch.setattr(staged, "PIECE", 1 << 9)
    R, me, problems, modes = comm.size, comm.rank, [], set()
    headers, rows = Headers(comm, launch.rest), open_rows(comm, launch.rest, way)
    for units, (number, counts) in itertools.product((1, 8, 37), enumerate(tables(R) * 2)):
        buffer, layout = rows.room(counts[me], units)
        pack.pack(np.concatenate([message(me, to, counts[me, to], units) for to in range(R)]),
                  np.arange(layout.rows), np.empty((layout.rows, 0), np.int16), buffer, layout.place)
        headers.start(counts[me], counts[:, me])
        headers.wait()
        rows.start(headers.incoming, headers.extent)
        modes.add(rows.mode)
        rows.wait()
        want = np.concatenate([message(source, me, counts[source, me], units) for source in range(R)])
        largest, most = counts.max(), (counts.sum(axis=1) - counts.diagonal()).max()
        if headers.extent != Extent(largest, most):
            problems.append(f"table {number}: {headers.extent} is not {largest}, {most}")
        if not np.array_equal(headers.incoming.counts, counts[:, me]):
            problems.append(f"table {number}: counts {headers.incoming.counts} for {counts[:, me]}")
        if not np.array_equal(pack.gather(rows.arrived, rows.landing.place), want):
            problems.append(f"table {number}, {units} units: rows differ")
    if (way.mode == "alltoallv") == any("persistent" in mode for mode in modes):
        problems.append(f"rows travelled by {modes}")
    headers.free()
    rows.free()
    everywhere(problems)


def stage(comm, rows: Staged, counts: np.ndarray, units: int) -> None:
    """Sends what lies in the room; counts `[from, to]`."""
    rows.room(counts[comm.rank], units)
    rows.start(dense(counts[:, comm.rank], comm.rank),
               Extent(int(counts.max()), int((counts.sum(axis=1) - counts.diagonal()).max())))


def test_only_the_only_piece_of_an_exchange_makes_rungs(comm, everywhere, monkeypatch):
    """The others start by readiness. Making one may wait for the others, which may be busy making another's."""
    made, testing = [], []

    def make(*given):
        made.append(bool(testing))
        return make_request(*given)
    monkeypatch.setattr(persistent, "make_request", make)
    rows = open_rows(comm, launch.rest, Way("persistent", "staged"))
    for height, most in ((4, 17), (32, 30), (4, 18), (64, 600), (32, 500), (8, 17), (8, 8)):
        monkeypatch.setattr(staged, "PIECE", height * 2 * 3 * max(1, comm.size - 1))
        for _ in range(9):
            stage(comm, rows, np.full((comm.size, comm.size), most), 3)
            testing.append(1)
            rows.wait()
            testing.clear()
    rows.free()
    everywhere([] if made and not any(made) else [f"{made}"])


def test_a_piece_is_as_large_as_its_rows_at_most(comm, everywhere, monkeypatch):
    """By that `auto` decides: with all rows of the exchange it would take padding for cheap."""
    seen = []
    monkeypatch.setattr(Alltoallv, "start", lambda self, incoming, extent: seen.append(extent) or start(
        self, incoming, extent))
    monkeypatch.setattr(staged, "PIECE", 4 * 2 * 3 * max(1, comm.size - 1))
    rows, R = open_rows(comm, launch.rest, Way("alltoallv", "staged")), comm.size
    stage(comm, rows, np.full((R, R), 10), 3)
    rows.wait()
    single = np.zeros((R, R), int)
    single[0, R - 1] = 5
    stage(comm, rows, single, 3)
    rows.wait()
    rows.free()
    all_to_all, five = [(4, 4 * (R - 1)), (4, 4 * (R - 1)), (2, 2 * (R - 1))], 5 if R > 1 else 0
    want = [*all_to_all, (4, min(five, 4 * (R - 1))), (1, min(five, R - 1))]
    found = [(extent.largest, extent.total) for extent in seen]
    everywhere([] if found == want else [f"{found}"])


def test_sends_and_receives_stand_in_for_a_persistent_all_to_all(comm, everywhere):
    """For MPI before 4.0."""
    R, me = comm.size, comm.rank
    out, into = np.zeros((2, R * 3, 5), np.uint16)
    whole = blocks(np.full(R, 3), me, 3)
    kind = RowTypes()
    request = make_pairs(comm, out, into, whole, kind(5))
    problems = []
    for round in range(3):
        out[:] = np.concatenate([message(me + round, to, 3, 5) for to in range(R)])
        into[:] = 0
        request.Start()
        until(request.Test, launch.rest)
        want = np.concatenate([message(source + round, me, 3, 5) if source != me else np.zeros((3, 5))
                               for source in range(R)])
        if not np.array_equal(into, want):
            problems.append(f"round {round}")
    request.Free()
    kind.free()
    everywhere(problems)


class Before4(MPI.Intracomm):
    """Of a library without persistent collectives."""

    def Alltoall_init(self, *given):
        raise NotImplementedError

    Alltoallv_init = Alltoall_init


def test_a_job_needs_no_persistent_collectives(comm, everywhere):
    """On MPI before 4.0 counts and rows arrive all the same."""
    R, me, problems = comm.size, comm.rank, []
    old = Before4(comm)
    headers, rows = Headers(old, launch.rest), open_rows(old, launch.rest, Way("persistent"))
    for number, counts in enumerate([np.full((R, R), 3)] * 3 + tables(R)):
        buffer, layout = rows.room(counts[me], 5)
        pack.pack(np.concatenate([message(me + number, to, counts[me, to], 5) for to in range(R)]),
                  np.arange(layout.rows), np.empty((layout.rows, 0), np.int16), buffer, layout.place)
        headers.start(counts[me], counts[:, me])
        headers.wait()
        rows.start(headers.incoming, headers.extent)
        rows.wait()
        want = np.concatenate([message(source + number, me, counts[source, me], 5) for source in range(R)])
        if not np.array_equal(pack.gather(rows.arrived, rows.landing.place), want):
            problems.append(f"table {number}")
    headers.free()
    rows.free()
    everywhere(problems)


def test_a_request_that_is_complete_can_be_asked_again(comm, everywhere):
    headers = Headers(comm, launch.rest)
    headers.start(np.arange(comm.size), np.arange(comm.size))
    headers.wait()
    first = headers.incoming.counts
    headers.wait()
    second = headers.incoming.counts
    headers.free()
    everywhere([] if (first == comm.rank).all() and (second == first).all() else [f"{first} then {second}"])
