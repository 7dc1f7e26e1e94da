"""`bench exchange`: one direction of the exchange between all ranks, the library's own call on the same rows beside it.

A rank's own rows are left out on all sides: they never enter MPI. Every rank measures from a barrier to its own end,
and the slowest counts. Modes take turns within a round, so that a busy machine slows all alike. Where ranks outnumber
the cores the library's call is waited for as ours is: its own wait keeps the core from those that it waits for.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import product

import numpy as np
from mpi4py import MPI

from hpcmoe import array
from hpcmoe.errors import DeviceError, JobError
from hpcmoe.exchange import tune
from hpcmoe.exchange.buffer import RowTypes
from hpcmoe.exchange.headers import Headers
from hpcmoe.exchange.interface import Rows, until
from hpcmoe.exchange.lane import Way, open_rows
from hpcmoe.exchange.requests import Request, make_request
from hpcmoe.exchange.tune import even
from hpcmoe.files.exchange import Figure
from hpcmoe.kernels.pack import gather, pack
from hpcmoe.launch import Idle, World, spin, together
from hpcmoe.types import MODES, Layout, blocks

LARGEST = 2**31 - 1
"""Bytes of one exchange on a rank: more would take long to measure and no more be learned."""
ROUNDS = 51
"""Of each figure; its median counts."""


def all_to_one(ranks: int, rows: int) -> np.ndarray:
    """`[from, to]` int64: all rows go to rank 0."""
    counts = even(ranks, rows)
    counts[:, 1:] = 0
    return counts


PATTERNS = {"even": even, "all to one": all_to_one}


def check(ranks: int, rows: Sequence[int], units: int) -> None:
    """Raises `JobError` where there is nothing to measure, or too much for one exchange; `units` of 2 bytes a row."""
    if ranks < 2:
        raise JobError("an exchange needs two ranks or more: mpiexec -n 2 hpcmoe bench exchange")
    if 2 * max(rows) * units * (ranks - 1) > LARGEST:
        raise JobError(f"--rows {max(rows)}: more than 2**31 - 1 bytes in one exchange; give less rows or --hidden")


def measure(world: World, rows: Sequence[int], hidden: int, dtype: np.dtype, rounds: int = ROUNDS) -> list[Figure]:
    """Each pattern at each number of rows between two ranks. Collective; all ranks get the same figures.

    Raises `Agreed` where rows arrive that were not sent.
    """
    headers, kinds = Headers(world.comm, world.idle), RowTypes()
    figures = []
    for (pattern, table), count in product(PATTERNS.items(), rows):
        # new ones each time: rungs remember the counts before
        modes = {mode: open_rows(world.comm, world.idle, Way(mode, memory=world.memory)) for mode in MODES}
        x = np.zeros((count, hidden), dtype)
        contest = _contest(world, headers, modes, table(world.size, count), x)
        bare = _bare(world, modes["persistent"], table(world.size, count)[world.rank], x.nbytes // count // 2, kinds)
        if bare:
            contest["request"] = partial(_complete, bare, world.idle)
        seconds = tune.medians(world.comm, world.idle, contest, rounds)
        figures.append(Figure(pattern, count, x.nbytes, **{"request": np.nan, **seconds}))
        if bare:
            bare.Free()
        for mode in modes.values():
            mode.free()
    headers.free()
    kinds.free()
    return figures


def _contest(world: World, headers: Headers, modes: Mapping[str, Rows], table: np.ndarray,
             x: np.ndarray) -> dict[str, Callable[[], None]]:
    """What is timed, by name, each run once and its rows looked at; table `[from, to]`, x `[T, H]`."""
    counts, incoming, units = table[world.rank], table[:, world.rank], x.view(np.uint16).shape[1]
    sent, fill = message(world.rank, counts, units), filler(world.rank, counts, units)
    token = np.tile(np.random.default_rng(0).permutation(len(x)).astype(np.int32), np.count_nonzero(counts))

    def tell() -> None:
        headers.start(counts, counts)
        headers.wait()

    contest = {}
    for name, mode in modes.items():
        contest[name] = tune.repeat(mode, table, world.rank, units, fill)
        _check(world, name, gather(array.host(mode.arrived), mode.landing.place), table)
    rows, into = fill_room(modes["alltoallv"], counts, units, fill), modes["alltoallv"].arrived
    contest = {"raw": _raw(world, rows, counts, into, incoming), **contest}
    into[:] = 0
    array.settle(into)
    contest["raw"]()
    _check(world, "MPI_Ialltoallv", into, table)
    tell()
    return {**contest, "headers": tell, "pack": _packing(world, x, token, sent)}


def _packing(world: World, x: np.ndarray, token: np.ndarray, sent: np.ndarray) -> Callable[[], None]:
    """Rows `token` of x `[T, H]`, put one after another where `world` computes."""
    if world.memory == "host":
        trailer = np.empty((len(token), 0), np.int16)
        return lambda: pack(x, token, trailer, sent)
    from hpcmoe.device import rows
    there, index = array.on_device(x.view(np.uint16)), array.on_device(token)
    return lambda: array.settle(rows.take(there, index, len(token), there.shape[1]))


def _bare(world: World, mode: Rows, counts: np.ndarray, units: int, kinds: RowTypes) -> Request | None:
    """A persistent request of its own on the buffers of `mode`; None where that took exact counts. Collective."""
    if mode.mode != "persistent":
        return None
    rows, layout = mode.room(counts, units)
    capacity = layout.extent // world.size
    full = blocks(np.full(world.size, capacity), world.rank, capacity)
    return make_request(world.comm, rows, mode.arrived, full, kinds(units))


def _complete(request: Request, idle: Idle) -> None:
    request.Start()
    until(request.Test, idle)


def fill_room(mode: Rows, counts: np.ndarray, units: int, fill: Callable[[np.ndarray, Layout], None]) -> np.ndarray:
    """The rows that `mode` sends next."""
    rows, layout = mode.room(counts, units)
    fill(rows, layout)
    return rows


def message(source: int, counts: np.ndarray, units: int) -> np.ndarray:
    """`[N, units]` uint16: rows that say whence and whither they go, and which they are; counts `[R]`."""
    target = np.repeat(np.arange(len(counts)), counts)
    row = np.concatenate([np.arange(count) for count in counts])
    first = source * 10007 + target * 101 + row
    return (first[:, None] + 31 * np.arange(units)).astype(np.uint16)


def filler(source: int, counts: np.ndarray, units: int) -> Callable[[np.ndarray, Layout], None]:
    """What puts the `message` of rank `source` into a room, for `tune.repeat`."""
    sent = message(source, counts, units)

    def fill(rows: np.ndarray, layout: Layout) -> None:
        rows[slice(None) if layout.place is None else layout.place] = array.beside(sent, rows)
        array.settle(rows)
    return fill


def expected(me: int, table: np.ndarray, units: int) -> list[np.ndarray]:
    """`[n, units]` uint16 from each rank: what comes to rank `me` if each sends its `message`; table `[from, to]`."""
    only = np.arange(len(table)) == me
    return [message(source, np.where(only, table[source], 0), units) for source in range(len(table))]


def _check(world: World, name: str, arrived: np.ndarray, table: np.ndarray) -> None:
    """Collective."""
    def look() -> None:
        parts = np.split(array.host(arrived), np.cumsum(table[:, world.rank])[:-1])
        for source, (rows, want) in enumerate(zip(parts, expected(world.rank, table, arrived.shape[1]))):
            if not np.array_equal(rows, want):
                raise DeviceError(f"{name}: rows from rank {source} are not those that it sent; try another MPI")
    together(world, look)


def _raw(world: World, rows: np.ndarray, counts: np.ndarray, into: np.ndarray,
         incoming: np.ndarray) -> Callable[[], None]:
    """The library's own call, with all that it needs made before."""
    out, home = ((c * rows.shape[1]).astype(np.int32) for c in (counts, incoming))
    send = [rows, (out, np.cumsum(out, dtype=np.int32) - out), MPI.UINT16_T]
    receive = [into, (home, np.cumsum(home, dtype=np.int32) - home), MPI.UINT16_T]
    comm, idle = world.comm, world.idle
    if idle is spin:
        return lambda: comm.Ialltoallv(send, receive).Wait()
    return lambda: until(comm.Ialltoallv(send, receive).Test, idle)
