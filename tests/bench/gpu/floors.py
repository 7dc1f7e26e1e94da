"""Below what no GPU of this kind can be: the seconds that a row's bytes and products need at an H200's best rates.

Values are bfloat16, 2 bytes each. What a kernel moves beside what it must (logits, indices, what lies between two of
its steps) is not in a floor.
"""

from hpcmoe.spec import ModelSpec, layer_tensors

BANDWIDTH = 4.3e12
"""bytes/s that an H200 reads and writes at best; its data sheet says 4.8e12."""
FLOPS = 790e12
"""FLOP/s of large bfloat16 products at best; the data sheet says 989e12, at a clock that its power does not allow."""
VALUE = 2
"""Bytes."""


def floor(size: float, flops: float) -> float:
    """Seconds for `size` bytes and `flops` products and sums: the longer of both, for they can go on together."""
    return max(size / BANDWIDTH, flops / FLOPS)


def expert(rows: int, hidden: int, width: int) -> float:
    """Three matrices `[I, H]` and the rows are read, as many rows written; 2 FLOPs for each row and weight."""
    weights = 3 * width * hidden
    return floor(VALUE * (weights + 2 * rows * hidden), 2 * rows * weights)


def routing(tokens: int, experts: int, top_k: int, hidden: int) -> float:
    """The gate's product, and behind it, since the rows wait for the choice, each row read once and written K times."""
    return 2 * tokens * experts * hidden / FLOPS + VALUE * (1 + top_k) * tokens * hidden / BANDWIDTH


def combine(tokens: int, top_k: int, hidden: int) -> float:
    """K answers a token are read, one row is written; the residual, which is read too, is not in it."""
    return floor(VALUE * (top_k + 1) * tokens * hidden, 2 * tokens * top_k * hidden)


def absorbed(batch: int, context: int, heads: int, rank: int, turning: int) -> tuple[int, int]:
    """Bytes and FLOPs of one token of each sequence: what is kept of `context` tokens, read once; 2 FLOPs for each head
    and each value of a key, and of a value."""
    keys, width = batch * context, rank + turning
    return VALUE * keys * width, 2 * keys * heads * (width + rank)


def matrices(model: ModelSpec) -> tuple[int, int]:
    """Values of all matrices that every token meets where each has one expert or goes to all: of layers, of the head.

    The embedding is not among them: a token reads one row of it.
    """
    layers = sum(t.values for n in range(model.layers) for t in layer_tensors(model, n) if len(t.shape) > 1)
    return layers, model.vocabulary * model.hidden


def decode(model: ModelSpec, batch: int, context: int) -> float:
    """A step of one token a sequence: weights and the cache of `context` tokens a sequence are read once.

    FLOPs: 2 for each weight, and for each key and value of a query head.
    """
    weights, a = sum(matrices(model)), model.attention
    cached = batch * context * model.layers * 2
    return floor(VALUE * (weights + cached * a.kv_width), 2 * batch * weights + 2 * cached * a.query_width)


def prefill_flops(model: ModelSpec, tokens: int) -> float:
    """Of one sequence from its beginning, whose last token alone meets the head.

    2 for each weight and token; in attention 4 for each pair of a token and one that it sees and each value of a query.
    """
    layers, head = matrices(model)
    pairs = tokens * (tokens + 1) // 2
    return 2 * (layers * tokens + head) + 4 * pairs * model.attention.query_width * model.layers
