"""The heads of attention on several ranks: which ones each has, and what it keeps of their weights."""

from dataclasses import replace
from math import gcd

from hpcmoe import slots
from hpcmoe.model.weights import Cut
from hpcmoe.slots import Piece, Shard
from hpcmoe.spec import Attention, ModelSpec, Tensor

Ranges = list[tuple[int, int]]


def local(model: ModelSpec, mine: Shard) -> ModelSpec:
    """The model as attention sees it where it has the heads `mine` only."""
    return replace(model, attention=share(model.attention, mine))


def share(a: Attention, mine: Shard) -> Attention:
    """Attention of the heads `mine`, which are neighbours."""
    first, end = mine.span(a.heads)
    return replace(a, heads=end - first, kv_heads=end - first if a.latent else len(kv_heads(a, mine)))


def kv_heads(a: Attention, mine: Shard) -> list[int]:
    """The key and value heads of the query heads `mine`, each for as many of them: one whose queries straddle two ranks
    is on both, and more than once where they do not share theirs evenly."""
    first, end = mine.span(a.heads)
    group = a.heads // a.kv_heads
    of = [head // group for head in range(first, end)]
    even = gcd(*(of.count(kv) for kv in set(of)))
    return of[::even]


def piece(a: Attention, tensor: Tensor, mine: Shard) -> Tensor:
    """What a rank with the heads `mine` keeps of a tensor of attention: its heads' rows, and of the matrix behind them
    its heads' columns; all of any other."""
    name, (first, end) = tensor.kind.removeprefix("attention/"), mine.span(a.heads)
    if mine.of == 1 or name == tensor.kind:
        return tensor
    if name == "o":
        width = tensor.shape[1] // a.heads
        return _part(tensor, [(0, tensor.shape[0])], (first * width, end * width))
    if name in ("q", "kv_b", "sinks"):
        width = tensor.shape[0] // a.heads
        return _part(tensor, [(first * width, end * width)])
    if name in ("qkv", "qkv_bias"):
        return _part(tensor, _qkv(a, mine))
    return tensor


def cut(model: ModelSpec, shard: Shard, mine: Shard) -> Cut:
    """What a rank keeps that has a `shard` of experts, and the heads `mine`."""
    def kept(tensor: Tensor) -> Tensor | None:
        return piece(model.attention, tensor, mine) if tensor.expert is None else slots.piece(tensor, shard)
    return kept


def _qkv(a: Attention, mine: Shard) -> Ranges:
    first, end = mine.span(a.heads)
    d, rows = a.head_dim, [(first * a.head_dim, end * a.head_dim)]
    for begin in a.query_width, a.query_width + a.kv_width:
        rows += [(begin + kv * d, begin + (kv + 1) * d) for kv in kv_heads(a, mine)]
    return rows


def _part(tensor: Tensor, rows: Ranges, columns: tuple[int, int] | None = None) -> Piece:
    """Rows in ranges, and of a matrix the columns between two, or all."""
    width = tensor.shape[1] if len(tensor.shape) > 1 else 0
    columns = columns or (0, width)
    shape = (sum(end - first for first, end in rows), *([columns[1] - columns[0]] if width else []))
    return Piece(tensor.name, shape, tensor.part, tensor.expert, tensor.shape, tuple(rows), columns)
