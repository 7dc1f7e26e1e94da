"""What an exchange moves: bytes of each rank, out and in, inside nodes and between them.

A source sends each rank the same part of the rows that it gets, 1 / R: tokens are spread evenly over the ranks. With
r_d rows for rank d, of R ranks, n of them on its node, flat rows come to

    in, near: r_d (n - 1) / R            out of s, near: (sum over its node of r - r_s) / R
    in, far:  r_d (R - n) / R            out of s, far:  (sum of r - sum over its node of r) / R

and answers go the other way. Where experts have replicas, more of their rows stay near (`shares`): what comes from a
rank's node is then spread over its n - 1 others, and what comes from elsewhere over R - n ranks.

In two hops q_N rows go to node N, one for each token that it has any expert of; each of its ranks relays a part:

    first hop, in: q_N (R - n) / (R n)   out of s: (sum of q - q of its node) / R
    second hop, in: r_d (n - 1) / n      out of s: (sum over its node of r - r_s) / n
"""

from dataclasses import dataclass

import numpy as np

from hpcmoe.exchange.interface import MOST
from hpcmoe.predict.machine import Links
from hpcmoe.types import MODES

Pair = tuple[np.ndarray, np.ndarray]
"""`[R]`, or by class `[C]`, float64 each: near, and far."""


@dataclass(frozen=True)
class Nodes:
    """Ranks on nodes."""

    node: np.ndarray
    """`[R]` int64"""
    size: np.ndarray
    """`[R]` float64: ranks of each rank's node, n"""

    @property
    def ranks(self) -> int:
        return len(self.node)

    @property
    def many(self) -> bool:
        return int(self.node[-1]) > 0

    def sums(self, values: np.ndarray) -> np.ndarray:
        """`[R]`: of values `[R]` over each rank's node."""
        return np.bincount(self.node, values)[self.node]


def nodes(ranks: int, ranks_per_node: int) -> Nodes:
    """Neighbouring ranks share nodes."""
    node = np.arange(ranks) // ranks_per_node
    return Nodes(node, np.bincount(node)[node].astype(np.float64))


@dataclass(frozen=True)
class Hop:
    """Rows that move at once, `[R]` float64 each."""

    out: Pair
    come: Pair
    peers: Pair
    """ranks that each one may send to"""

    def back(self) -> "Hop":
        """The same rows the other way."""
        return Hop(self.come, self.out, self.peers)


@dataclass(frozen=True)
class Flow:
    """One direction of an exchange."""

    hops: tuple[Hop, ...]
    """one after another"""
    own: np.ndarray
    """`[R]`: rows that stay on their rank"""
    row: float
    """bytes of a row"""


def alike(at: Nodes) -> np.ndarray:
    """`[3, R]` float64: which parts of a rank's rows come from itself, its node, and others, where all send alike."""
    return np.stack([np.ones(at.ranks), at.size - 1, at.ranks - at.size]) / at.ranks


def flat(rows: np.ndarray, at: Nodes, parts: np.ndarray) -> Hop:
    """Rows `[R]` for each rank, straight from all; parts as of `alike`."""
    _, near, far = rows * parts
    peers = (at.size - 1, at.ranks - at.size)
    a, b = _over(near, peers[0]), _over(far, peers[1])
    return Hop((at.sums(a) - a, np.maximum(b.sum() - at.sums(b), 0)), (near, far), peers)


def far(to_nodes: np.ndarray, at: Nodes, parts: np.ndarray) -> Hop:
    """To relays: `to_nodes` `[R]` rows go to each rank's node, a part of them, `[R]` too, from others."""
    n, none = at.size, np.zeros(at.ranks)
    come = to_nodes * parts / n
    each = _over(come, at.ranks - n)
    return Hop((none, np.maximum(each.sum() - at.sums(each), 0)), (none, come),
               (none, np.full(at.ranks, float(at.node[-1]))))


def _over(rows: np.ndarray, ranks: np.ndarray) -> np.ndarray:
    return np.divide(rows, ranks, out=np.zeros_like(rows), where=ranks > 0)


def near(rows: np.ndarray, at: Nodes) -> Hop:
    """From relays: rows `[R]` for each rank, inside its node."""
    n, none = at.size, np.zeros(at.ranks)
    return Hop(((at.sums(rows) - rows) / n, none), (rows * (n - 1) / n, none), (n - 1, none))


def there(rows: np.ndarray, to_nodes: np.ndarray | None, at: Nodes, row: float,
          parts: np.ndarray | None = None) -> Flow:
    """Rows to the ranks that compute them; `to_nodes` as in `far`, for two hops; parts `[3, R]` as of `alike`."""
    parts = alike(at) if parts is None else parts
    if to_nodes is None:
        return Flow((flat(rows, at, parts),), rows * parts[0], row)
    away = np.divide(at.sums(rows * parts[2]), at.sums(rows), out=np.zeros(at.ranks), where=at.sums(rows) > 0)
    return Flow((far(to_nodes, at, away), near(rows, at)), rows / at.size, row)


def home(rows: np.ndarray, to_nodes: np.ndarray | None, at: Nodes, row: float,
         parts: np.ndarray | None = None) -> Flow:
    """Answers `[R]` of each rank; `to_nodes` of each node together, for two hops."""
    forward = there(rows, to_nodes, at, row, parts)
    return Flow(tuple(hop.back() for hop in reversed(forward.hops)), forward.own, row)


@dataclass(frozen=True)
class Move:
    """A hop as it is sent, `[R]` or `[C]`: bytes and messages."""

    out: Pair
    come: Pair
    messages: np.ndarray
    seconds: float
    """of a message"""
    mode: str


def sent(hop: Hop, row: float, links: Links, mode: str, most: float) -> Move:
    """By exact counts, or padded to a rung: the next power of two of the most rows between any two ranks, which are
    `most` tokens at most; by what takes less where mode is neither.

    The most of Poisson numbers with mean m of R^2 pairs is taken to be m + sqrt(2 m l) + l / 3, l = ln R^2.
    """
    exact = _exact(hop, row, links)
    if mode == MODES[0]:
        return exact
    rung = _rung(hop, row, links, most)
    if mode != MODES[1] and (rung is None or _alone(exact, links) <= _alone(rung, links)):
        return exact
    return rung or exact


def _exact(hop: Hop, row: float, links: Links) -> Move:
    filled = [peers * -np.expm1(-np.divide(out, peers, out=np.zeros_like(out), where=peers > 0))
              for out, peers in zip(hop.out, hop.peers)]
    out, come = ((near * row, far * row) for near, far in (hop.out, hop.come))
    return Move(out, come, filled[0] + filled[1], links.message, MODES[0])


def _rung(hop: Hop, row: float, links: Links, most: float) -> Move | None:
    """None where it would be larger than rungs may be."""
    peers = hop.peers[0] + hop.peers[1]
    R, mean = len(peers), max(float(np.divide(rows, count, out=np.zeros_like(rows), where=count > 0).max())
                              for rows, count in zip((*hop.out, *hop.come), hop.peers * 2))
    log = 2 * np.log(max(R, 2))
    largest = min(most, mean + np.sqrt(2 * mean * log) + log / 3)
    capacity = 2.0 ** np.ceil(np.log2(max(largest, 1)))
    if capacity * row * R > MOST:
        return None
    padded = (hop.peers[0] * capacity * row, hop.peers[1] * capacity * row)
    return Move(padded, padded, peers, links.request, MODES[1])


def _alone(move: Move, links: Links) -> float:
    """Seconds of the slowest rank, nothing else being under way."""
    spans = [np.maximum(out, come) / rate
             for out, come, rate in zip(move.out, move.come, (links.near_rate, links.far_rate))]
    return float(np.maximum(np.maximum(*spans), move.seconds * move.messages).max())


def gathered(ranks: int, links: Links, size: float, many: bool) -> float:
    """Seconds of an all-gather of `size` bytes from each: log2 R rounds, in which all that the others have comes."""
    if ranks == 1:
        return 0.0
    latency, rate = (links.far_latency, links.far_rate) if many else (links.near_latency, links.near_rate)
    return float(links.start / 2 + np.ceil(np.log2(ranks)) * (latency + links.request) + (ranks - 1) * size / rate)


def small(ranks: int, links: Links, size: float, many: bool) -> float:
    """Seconds of an all-to-all of `size` bytes a peer: the shorter of one message to each, and of log2 R rounds that
    carry R / 2 blocks each (Bruck et al., 1997), as MPI libraries choose."""
    if ranks == 1:
        return 0.0
    latency, rate = (links.far_latency, links.far_rate) if many else (links.near_latency, links.near_rate)
    rounds = np.ceil(np.log2(ranks))
    straight = latency + max((ranks - 1) * links.request, (ranks - 1) * size / rate)
    return float(links.start / 2 + min(straight, rounds * (latency + links.request + ranks / 2 * size / rate)))
