"""Persistent requests: the library's own all-to-alls, and what does the same where it has none (before MPI 4)."""

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from mpi4py import MPI

from hpcmoe.types import Layout


class Request(Protocol):
    """What an `MPI.Prequest` offers."""

    def Start(self) -> None:
        """Begins once more."""

    def Test(self) -> bool:
        """Whether it is complete, or was never started."""

    def Free(self) -> None:
        """Nothing more comes."""


class Pairs:
    """A persistent receive and send for each peer, behind the face of one request."""

    def __init__(self, requests: Sequence[MPI.Prequest]) -> None:
        self._requests = list(requests)

    def Start(self) -> None:
        """See `Request`."""
        MPI.Prequest.Startall(self._requests)

    def Test(self) -> bool:
        """See `Request`."""
        return MPI.Request.Testall(self._requests)

    def Free(self) -> None:
        """See `Request`."""
        for request in self._requests:
            request.Free()


class Again:
    """A plain request that begins anew at each start, behind the face of a persistent one."""

    def __init__(self, begin: Callable[[], MPI.Request]) -> None:
        self._begin, self._request = begin, MPI.REQUEST_NULL

    def Start(self) -> None:
        """See `Request`."""
        self._request = self._begin()

    def Test(self) -> bool:
        """See `Request`."""
        return self._request.Test()

    def Free(self) -> None:
        """See `Request`. Nothing is kept between two starts."""


def make_even(comm, out: np.ndarray, into: np.ndarray) -> Request:
    """Moves equal parts of `out` to all ranks, theirs to `into`. Collective."""
    try:
        return comm.Alltoall_init(out, into)
    except NotImplementedError:
        return Again(lambda: comm.Ialltoall(out, into))


def make_gather(comm, mine: np.ndarray, all_: np.ndarray) -> Request:
    """Moves `mine` `[n]` to all ranks, theirs to all_ `[R, n]`. Collective."""
    try:
        return comm.Allgather_init(mine, all_)
    except NotImplementedError:
        return Again(lambda: comm.Iallgather(mine, all_))


def make_request(comm, out: np.ndarray, into: np.ndarray, layout: Layout, kind: MPI.Datatype) -> Request:
    """Moves the blocks of `layout` from `out` to `into`, `[extent, units]` each; `kind` is a row. Collective."""
    try:
        return comm.Alltoallv_init([out, layout.travels, kind], [into, layout.travels, kind])
    except NotImplementedError:
        return make_pairs(comm, out, into, layout, kind)


def make_pairs(comm, out: np.ndarray, into: np.ndarray, layout: Layout, kind: MPI.Datatype) -> Pairs:
    """The same by sends and receives. Collective, for a later request on `comm` must not meet these."""
    peers = [(comm.rank + step) % comm.size for step in range(1, comm.size)]
    parts = {peer: slice(first, first + count) for peer, (first, count) in
             enumerate(zip(layout.first.tolist(), layout.counts.tolist()))}
    tag = 0
    return Pairs([comm.Recv_init([into[parts[peer]], parts[peer].stop - parts[peer].start, kind], peer, tag)
                  for peer in reversed(peers)] +
                 [comm.Send_init([out[parts[peer]], parts[peer].stop - parts[peer].start, kind], peer, tag)
                  for peer in peers])
