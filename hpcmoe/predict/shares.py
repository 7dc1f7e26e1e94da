"""Which replica of an expert gets how many rows, and from how near: what `exchange.replicas` comes to, by chance.

Without `balance.exact` each rank shares out its own rows: X of them, as many to each of c replicas, and the odd X mod c
to the nearest. X is binomial; with w = exp(2 pi i / c), P(X mod c = r) = 1/c sum over u < c of w^(-u r) (1 - p +
p w^u)^T, for T tokens that each come with p. A rank that has a replica as its k-th nearest, from 0, so sends it
floor(X / c) rows, and one more with P(X mod c > k).

With it no replica gets more than ceil(n / c) of all n rows, and the rows of a rank, then of a node, stay where there is
room.
"""

from dataclasses import dataclass

import numpy as np

from hpcmoe.predict.flow import Nodes
from hpcmoe.slots import Placement

OWN, NEAR, FAR = range(3)
"""Where rows come from: the replica's own rank or group, its node, others."""


@dataclass(frozen=True)
class Shares:
    """A layer's slots, of whole experts on ranks or groups of them."""

    expert: np.ndarray
    """`[S]` int64: in each slot"""
    rank: np.ndarray
    """`[S]` int64: which has it; of a group the first one"""
    copies: np.ndarray
    """`[S]` int64: of that expert"""
    column: np.ndarray
    """`[S]` int64: which of them it is, from 0"""
    turns: np.ndarray
    """`[3, S, C]` int32: how many ranks that are `OWN`, `NEAR`, `FAR` have it as their k-th nearest"""
    beside: np.ndarray
    """`[S]` int64: how many of them its node has"""
    size: np.ndarray
    """`[S]` float64: ranks of its node"""

    @property
    def replicated(self) -> bool:
        """Whether any expert has more than one."""
        return self.turns.shape[2] > 1

    def expected(self, likely: np.ndarray, tokens: int, exact: bool) -> "Expected":
        """Of so many tokens on each rank; likely `[E]`: how likely one goes to each expert."""
        return _exact(self, likely * tokens) if exact else _even(self, likely, tokens)


@dataclass(frozen=True)
class Expected:
    """What the slots of a layer are expected to get."""

    of: Shares
    come: np.ndarray
    """`[3, S]` float64: rows that come to each, by where from"""
    base: np.ndarray | None
    """`[S]` float64: of them, what all replicas of an expert get alike; None where all is exact"""
    variance: np.ndarray
    """`[S]`: of the rest, as if each replica had it alone: so drawn, and scaled to the rows that there are, replicas
    differ as much as they should"""

    @property
    def rows(self) -> np.ndarray:
        """`[S]` float64"""
        return self.come.sum(axis=0)

    def parts(self, rows: np.ndarray, ranks: int, shards: int) -> np.ndarray | None:
        """`[3, R]`, as of `flow.alike`: which parts of each rank's rows come from where; rows `[S]`: of its slots. None
        where no expert has replicas, so that all ranks send alike."""
        if not self.of.replicated:
            return None
        near = self.come * np.divide(rows, self.rows, out=np.zeros_like(rows), where=self.rows > 0)
        found = np.stack([np.bincount(self.of.rank // shards, one, minlength=ranks // shards) for one in near])
        own, inside, far = np.divide(found, found.sum(axis=0), out=np.zeros_like(found), where=found.sum(axis=0) > 0)
        return np.repeat([own / shards, inside + own * (shards - 1) / shards, far], shards, axis=1)

    def slots(self, chance: np.random.Generator | None, rows: np.ndarray) -> np.ndarray:
        """`[S]` float64: rows of each slot, by `chance` or as expected; rows `[E]`: of each expert, from all ranks.
        The odd rows are taken for a binomial number of their mean and variance."""
        of, n = self.of, rows[self.of.expert]
        if not of.replicated:
            return n
        if not chance:
            return self.rows
        if self.base is None:
            most = np.ceil(n / of.copies)
            return np.clip(n - of.column * most, 0, most)
        mean = self.rows - self.base
        p = np.clip(1 - np.divide(self.variance, mean, out=np.zeros_like(mean), where=mean > 0), 1e-9, 1)
        tries = np.maximum(np.rint(mean / p), np.ceil(mean))
        odd = chance.binomial(tries.astype(np.int64), np.divide(mean, tries, out=np.zeros_like(p), where=tries > 0))
        weight = self.base + odd
        whole = np.bincount(of.expert, weight, minlength=len(rows))[of.expert]
        return np.where(whole > 0, n * weight / np.where(whole > 0, whole, 1), n / of.copies)


def _even(of: Shares, likely: np.ndarray, tokens: int) -> Expected:
    each, odd, alone = _parts(likely, tokens, np.bincount(of.expert, minlength=len(likely)), of.turns.shape[2])
    more = odd[of.expert]  # [S, C]
    ranks = of.turns.sum(axis=2)
    alike, chance = ranks * each[of.expert], of.turns.sum(axis=0) * more * (1 - more)
    apart = chance.sum(axis=1) - ranks.sum(axis=0) * alone[of.expert]
    return Expected(of, alike + (of.turns * more).sum(axis=2), alike.sum(axis=0),
                    np.maximum(apart, 0) * of.copies / np.maximum(of.copies - 1, 1))


def _parts(likely: np.ndarray, tokens: int, copies: np.ndarray, most: int) -> tuple[np.ndarray, ...]:
    """`[E]`, `[E, most]` and `[E]` float64: what each replica gets of a rank's rows; how likely the k-th gets one more;
    and the variance of the mean of these, which all replicas share."""
    each, odd, alone = tokens * likely, np.zeros((len(likely), most)), np.zeros(len(likely))
    for c in np.unique(copies[copies > 1]).tolist():
        some = copies == c
        p = likely[some, None]
        moments = (1 - p + p * np.exp(2j * np.pi * np.arange(c) / c)) ** tokens
        left = (np.fft.fft(moments).real / c).clip(0)  # [.., r]: X mod c = r
        mean, square = left @ np.arange(c), left @ np.arange(c)**2
        each[some], alone[some] = np.maximum(tokens * p[:, 0] - mean, 0) / c, (square - mean**2) / c**2
        odd[some, :c] = np.clip(1 - np.cumsum(left, axis=1), 0, 1)
    return each, odd, alone


def _exact(of: Shares, rows: np.ndarray) -> Expected:
    """rows `[E]`: of each expert, that a rank has."""
    ranks = of.turns.sum(axis=(0, 2))  # of all, the same for each slot
    own = np.minimum(of.turns[OWN].sum(axis=1) * of.copies / ranks, 1.0)
    local = np.clip(of.size * of.copies / (of.beside * ranks), own, 1.0)
    come = (rows[of.expert] * ranks / of.copies) * np.stack([own, local - own, 1 - local])
    return Expected(of, come, None, np.zeros(len(own)))


def shares(placement: Placement, at: Nodes) -> Shares:
    """Of a layer; see `replicas.near`, whose order this counts."""
    expert, rank = placement.expert.astype(np.int64), placement.rank.astype(np.int64)
    copies = placement.copies.astype(np.int64)[expert]
    column = (placement.slots[expert] == np.arange(len(expert))[:, None]).argmax(axis=1)
    node = at.node[rank]
    pair = node * len(placement.copies) + expert
    _, which, many = np.unique(pair, return_inverse=True, return_counts=True)
    return Shares(expert, rank, copies, column, _turns(placement, at, copies, column), many[which], at.size[rank])


def _turns(placement: Placement, at: Nodes, copies: np.ndarray, column: np.ndarray) -> np.ndarray:
    """As in `Shares`. Where no replica is near, a rank's first one goes by its group's number; then what is otherwise
    on nodes that have some is put right."""
    slots, C, t = placement.slots, placement.slots.shape[1], placement.shards
    group, k = np.arange(at.ranks) // t, np.arange(C)
    found = np.zeros((3, len(placement.rank), C), np.int32)
    begins = np.stack([np.bincount(group % c, minlength=C) for c in range(1, C + 1)])  # [c - 1, first column]
    each = begins[copies[:, None] - 1, (column[:, None] - k) % copies[:, None]]
    found[FAR] = np.where(k < copies[:, None], each, 0)
    pair = np.unique(at.node[placement.rank] * len(slots) + placement.expert)
    node, expert = np.divmod(pair, len(slots))
    member = np.searchsorted(at.node, node)[:, None] + np.arange(int(at.size.max()))
    inside = member < np.searchsorted(at.node, node, side="right")[:, None]  # [P, n]
    mine = group[np.minimum(member, at.ranks - 1)][..., None]
    head = mine * t
    there, c = slots[expert][:, None], np.bincount(placement.expert, minlength=len(slots))[expert][:, None, None]
    rank, turn = placement.rank[there], (k - mine) % c
    where = np.where(there < 0, 3, np.where(rank == head, OWN, np.where(at.node[rank] == at.node[head], NEAR, FAR)))
    nth = np.argsort(np.argsort(where * C + turn, axis=2, kind="stable"), axis=2)
    valid = inside[..., None] & (there >= 0)
    slot = np.broadcast_to(there, nth.shape)[valid]
    np.subtract.at(found[FAR], (slot, turn[valid]), 1)
    np.add.at(found, (where[valid], slot, nth[valid]), 1)
    return found
