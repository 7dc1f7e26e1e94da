"""What each stage of a micro-batch costs a rank: bytes of its memory, FLOPs, and seconds.

A kernel takes max(bytes / rate, FLOPs / rate), and a stage what its kernels do one after another + what is fixed. T
tokens of a micro-batch, M those that a rank attends to: T, or those of its team; w bytes of a weight, v of a value. A
product of `[n, in]` and a matrix of W values: 2 n W FLOPs, and w W + v n (in + out) bytes, so few rows cost what
reading the weights does; or the seconds that were measured (`products`), and those of the rows' bytes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from hpcmoe.device.scratch import FEW, RECURRING
from hpcmoe.kernels.attention import SHORT
from hpcmoe.model import heads
from hpcmoe.predict import products
from hpcmoe.predict.machine import Device, Hardware
from hpcmoe.slots import Shard
from hpcmoe.spec import ModelSpec, layer_tensors
from hpcmoe.types import Span

BOUNDS = ("memory", "FLOPs", "overhead")
"""What keeps a stage from being faster."""


@dataclass(frozen=True)
class Work:
    """What a stage does."""

    stage: str
    bytes: float = 0.0
    flops: float = 0.0
    by_memory: float = 0.0
    """seconds of the kernels that memory bounds"""
    by_flops: float = 0.0
    by_overhead: float = 0.0
    launch: float = 0.0
    """seconds of the main thread meanwhile, at least"""

    @property
    def seconds(self) -> float:
        return sum(self.bounds)

    @property
    def alone(self) -> float:
        """Seconds where nothing was to be done before: of the stream or of the main thread, whichever takes longer."""
        return max(self.seconds, self.launch)

    @property
    def bound(self) -> str:
        """What it takes longest for."""
        return "launch" if self.launch > self.seconds else BOUNDS[int(np.argmax(self.bounds))]

    @property
    def bounds(self) -> tuple[float, float, float]:
        """Seconds by `BOUNDS`."""
        return self.by_memory, self.by_flops, self.by_overhead

    def __add__(self, other: "Work") -> "Work":
        return Work(self.stage, self.bytes + other.bytes, self.flops + other.flops, self.by_memory + other.by_memory,
                    self.by_flops + other.by_flops, self.by_overhead + other.by_overhead, self.launch + other.launch)


def recurs(hw: Hardware, spans: Sequence[Span]) -> bool:
    """Whether what a GPU computes between two exchanges is a graph; see `engine.blocks`."""
    return hw.on_gpu and 0 < len(spans) <= RECURRING and all(span.rows == 1 for span in spans)


def kernel(stage: str, device: Device, moved: float, flops: float = 0.0, fixed: float = 0.0,
           launch: float = 0.0) -> Work:
    """One that moves so many bytes and computes so many FLOPs, with `fixed` seconds beside both."""
    memory, arithmetic = moved / (device.rate * device.rate_share), flops / (device.flops * device.flops_share)
    by_memory = memory >= arithmetic
    return Work(stage, moved, flops, memory if by_memory else 0.0, 0.0 if by_memory else arithmetic, fixed, launch)


def product(stage: str, device: Device, rows: float, values: float, wide: float, fixed: float = 0.0,
            launch: float = 0.0) -> Work:
    """`rows` rows times matrices of so many values together, whose inputs and outputs, and what is read and written
    around them, are `wide` values of a row; nothing without rows."""
    return Work(stage, *map(float, _product(device, np.array(rows, np.float64), values, wide, fixed, launch)))


def _product(device: Device, rows: np.ndarray, values: float, wide: float, fixed: float,
             launch: float) -> tuple[np.ndarray, ...]:
    """The fields of `Work`, rows `[...]` each: of an expected part of a row, how likely there is one."""
    there = np.minimum(rows, 1.0)
    weights, beside, flops = there * device.weight * values, device.value * rows * wide, 2.0 * rows * values
    rate = device.rate * device.rate_share
    if device.products:
        taken, around = products.seconds(device.products, rows, values), beside / rate
        by_memory = weights / device.rate >= flops / device.flops
    else:
        memory, arithmetic = (weights + beside) / rate, flops / (device.flops * device.flops_share)
        taken, around, by_memory = np.maximum(memory, arithmetic), 0.0 * rows, memory >= arithmetic
    return (weights + beside, flops, np.where(by_memory, taken, 0.0) + around, np.where(by_memory, 0.0, taken),
            there * fixed, there * launch)


@lru_cache(maxsize=4096)
def attention_values(model: ModelSpec, layer: int, team: int) -> tuple[int, int]:
    """Weights of attention on the fullest rank of a team: of what each token is multiplied with, and of the matrix that
    makes keys and values of a latent's vectors."""
    kept = heads.cut(model, Shard(), Shard(0, team))
    found = {t.kind: part.values for t in layer_tensors(model, layer)
             if t.part == "attention" and (part := kept(t)) is not None}
    latent = found.pop("attention/kv_b", 0)
    return sum(found.values()), latent


def pairs(spans: Sequence[Span], window: int) -> tuple[np.ndarray, np.ndarray]:
    """`[spans]` float64: how many pairs of a token and one that it sees there are, and how many tokens are seen.

    n tokens behind c: sum over i = 1 … n of min(c + i, window); and min(c + n, window + n - 1).
    """
    n, c = (np.array([getattr(s, name) for s in spans], np.float64) for name in ("rows", "cached"))
    if not window:
        return n * c + n * (n + 1) / 2, c + n
    free = np.clip(window - c, 0, n)  # tokens that see all before them
    return free * c + free * (free + 1) / 2 + (n - free) * window, np.minimum(c + n, window + n - 1)


def attention(model: ModelSpec, hw: Hardware, layer: int, team: int, spans: Sequence[Span]) -> Work:
    """One layer's attention for the tokens in `spans`, those of the whole team; norms are in it.

    Projections: M rows times the weights of the rank's heads. Then, for a pair of a token and one that it sees, 2 FLOPs
    for each value of all heads' queries and answers; keys and values are read once for a span, 2 kv_width v bytes a
    token. With a latent: absorbed, for spans of up to SHORT tokens, 2 heads (2 rank + rotary) FLOPs a pair and (rank +
    rotary) v bytes a token; else keys and values are made of all vectors first, 2 kv_b FLOPs a token, then as above.
    """
    device, a = hw.device, heads.share(model.attention, Shard(0, team))
    seen, keys = pairs(spans, a.window_in(layer))
    rows = float(sum(span.rows for span in spans))
    values, kv_b = attention_values(model, layer, team)
    work = product("attention", device, rows, values, 6 * model.hidden + 2 * (a.query_width + a.mixed_width))
    scores = a.heads * sum(float(span.rows) * (span.cached + span.rows) for span in spans)
    long = sum(span.rows > SHORT for span in spans)
    work += Work("", by_overhead=(hw.overhead.attention + hw.overhead.span * len(spans) + hw.overhead.score * scores),
                 launch=hw.launch.attention + hw.launch.span * long)
    if not a.latent:
        return work + kernel("", device, device.value * 2.0 * a.kv_width * (keys.sum() + rows),
                             2.0 * seen.sum() * (a.query_width + a.mixed_width))
    short = np.array([span.rows <= SHORT for span in spans], bool)
    kept = a.latent.rank + a.latent.rotary_dim
    flops = 2.0 * a.heads * (seen[short].sum() * (kept + a.latent.rank)
                             + seen[~short].sum() * (a.query_dim + a.latent.value_dim))
    made = keys[~short].sum()
    few = sum(span.rows for span in spans if span.rows <= SHORT)
    moved = kept * (keys.sum() + rows) + 2 * made * a.heads * (a.head_dim + a.latent.value_dim)
    return work + kernel("", device, device.value * moved, flops) + product("", device, float(few + made), kv_b, 0)


def dense(model: ModelSpec, hw: Hardware, tokens: int) -> Work:
    """A dense block: T rows times 3 H I values."""
    assert model.dense
    wide = 2 * model.hidden + 3 * model.dense.hidden
    return product("attention", hw.device, tokens, 3.0 * model.hidden * model.dense.hidden, wide,
                   hw.overhead.attention, hw.launch.attention)


def gate(model: ModelSpec, hw: Hardware, tokens: int) -> Work:
    """T rows times E H values; E float32 scores of each are written and read."""
    work = product("gate", hw.device, tokens, float(model.experts * model.hidden), model.hidden)
    return work + kernel("", hw.device, 8.0 * tokens * model.experts, fixed=hw.overhead.gate, launch=hw.launch.gate)


def pack(hw: Hardware, rows: float, units: float) -> Work:
    """Rows of so many values are read and written: 2 v rows units bytes."""
    return kernel("pack", hw.device, 2.0 * hw.device.value * rows * units, fixed=hw.overhead.pack,
                  launch=hw.launch.pack)


def experts(model: ModelSpec, hw: Hardware, shards: int, rows: np.ndarray) -> np.ndarray:
    """`[6, ...]`: the fields of `Work` behind the first, of each expert or shard, for its rows `[...]` float64.

    3 H I / t values; a row has 2 H + 3 I / t values. One after another, if any row comes.
    """
    assert model.moe
    width = -(-model.moe.hidden // shards)
    return np.stack(_product(hw.device, rows, 3.0 * model.hidden * width, 2 * model.hidden + 3 * width,
                             hw.overhead.expert, hw.launch.expert))


def launches(hw: Hardware, one_by_one: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """`[...]` seconds of launching a rank's experts, which take `one_by_one` where each has its own and `rows` rows
    together: few rows have one for all (`device.grouped`)."""
    few = rows * hw.launch.expert <= FEW * one_by_one
    return np.where(few, np.minimum(one_by_one, hw.launch.expert), one_by_one)


def with_company(works: np.ndarray, shared_by: int, per_node: int) -> np.ndarray:
    """`[6, R]` fields of `Work` of ranks that begin at once, as if all who share a device worked as long -> those that
    they take: whoever goes on when others are done has their part, too. The g devices of a node of `per_node` ranks
    are dealt out in turn: ranks r, r + g, … share one.

    Of s ranks the k-th to end, of work w_k, ends (s - k + 1) (w_k - w_(k-1)) / s behind the one before.
    """
    per_node = min(per_node, works.shape[1])
    if shared_by == 1 or works.shape[1] % per_node or per_node % shared_by:
        return works
    taken = works[2:4].sum(axis=0).reshape(-1, shared_by, per_node // shared_by)
    order = np.argsort(taken, axis=1)
    more = np.diff(np.take_along_axis(taken, order, axis=1), axis=1, prepend=0.0)
    others = np.arange(shared_by, 0, -1)[:, None] / shared_by
    ends = np.empty_like(taken)
    np.put_along_axis(ends, order, np.cumsum(more * others, axis=1), axis=1)
    part = np.divide(ends, taken, out=np.ones_like(taken), where=taken > 0).ravel()
    return works * np.where(np.isin(np.arange(len(works)), (2, 3))[:, None], part, 1.0)


def shared(model: ModelSpec, hw: Hardware, tokens: int) -> Work:
    """The shared expert: T rows times 3 H I values of its own."""
    assert model.moe
    width = model.moe.shared_hidden
    return product("expert", hw.device, tokens, 3.0 * model.hidden * width, 2 * model.hidden + 3 * width,
                   hw.overhead.expert, hw.launch.expert)


def combine(model: ModelSpec, hw: Hardware, tokens: int, shards: int) -> Work:
    """K answers of each token, or t parts of each in float32, are read and summed; x is read and written."""
    assert model.moe
    answers = tokens * model.moe.top_k * shards * model.hidden
    each = hw.device.value if shards == 1 else 4
    return kernel("combine", hw.device, float(each * answers + 2 * hw.device.value * tokens * model.hidden),
                  2.0 * answers, hw.overhead.combine, hw.launch.combine)


def head(model: ModelSpec, hw: Hardware, wanted: int) -> Work:
    """B rows times V H values; V float32 logits of each are written and read."""
    work = product("head", hw.device, wanted, float(model.vocabulary * model.hidden), model.hidden)
    return work + kernel("", hw.device, 8.0 * wanted * model.vocabulary, fixed=hw.overhead.head, launch=hw.launch.head)


def team_bytes(model: ModelSpec, device: Device, team: int, tokens: int) -> tuple[float, float]:
    """Bytes that a rank sends to its team before and behind an attention (`exchange.team`): (t - 1) T H v and
    (t - 1) T H 4."""
    return float((team - 1) * tokens * model.hidden * device.value), float((team - 1) * tokens * model.hidden * 4)


def team_join(model: ModelSpec, hw: Hardware, team: int, tokens: int) -> Work:
    """The t float32 parts of each token are read and summed; x is read and written."""
    moved = (4.0 * team + 2 * hw.device.value) * tokens * model.hidden
    return kernel("attention", hw.device, moved, float(team * tokens * model.hidden), hw.overhead.combine,
                  hw.launch.combine)
