"""What each stage of a micro-batch costs a rank: bytes of its memory, FLOPs, and seconds beside both.

A stage takes max(bytes / rate, FLOPs / rate) + what is fixed. T tokens of a micro-batch, M those that a rank attends
to: T, or those of its team; w bytes of a weight, v of a value. A product of `[n, in]` and a matrix of W values: 2 n W
FLOPs, and w W + v n (in + out) bytes; few rows so cost what reading the weights does.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from hpcmoe.kernels.attention import SHORT
from hpcmoe.model import heads
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
    fixed: float = 0.0
    """seconds"""
    copied: float = 0.0
    """bytes of weights that a product copies first"""

    def seconds(self, device: Device) -> float:
        memory, flops, fixed = self.parts(device)
        return max(memory, flops) + fixed

    def parts(self, device: Device) -> tuple[float, float, float]:
        """Seconds that each of `BOUNDS` asks for."""
        return (self.bytes / (device.rate * device.rate_share), self.flops / (device.flops * device.flops_share),
                self.fixed + (self.copied / device.copy_rate if device.copy_rate else 0.0))

    def __add__(self, other: "Work") -> "Work":
        return Work(self.stage, self.bytes + other.bytes, self.flops + other.flops, self.fixed + other.fixed,
                    self.copied + other.copied)


def product(stage: str, device: Device, rows: float, values: float, wide: float) -> Work:
    """`rows` rows times matrices of so many values together, whose inputs and outputs are `wide` values of a row:
    2 rows values FLOPs; w values + v rows wide bytes, none without rows. A CPU's BLAS copies w values bytes before it
    multiplies more than a few rows."""
    weights = device.weight * values if rows else 0.0
    return Work(stage, weights + device.value * rows * wide, 2.0 * rows * values,
                copied=weights if device.copy_rate and rows > device.few else 0.0)


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
    work += Work("", fixed=hw.overhead.attention + hw.overhead.span * len(spans))
    if not a.latent:
        both = 2.0 * a.kv_width
        return work + Work("", device.value * both * (keys.sum() + rows), 2 * seen.sum() * (a.query_width
                                                                                           + a.mixed_width))
    short = np.array([span.rows <= SHORT for span in spans], bool)
    kept = a.latent.rank + a.latent.rotary_dim
    flops = 2.0 * a.heads * (seen[short].sum() * (kept + a.latent.rank)
                             + seen[~short].sum() * (a.query_dim + a.latent.value_dim))
    made = keys[~short].sum()
    few = sum(span.rows for span in spans if span.rows <= SHORT)
    moved = kept * (keys.sum() + rows) + 2 * made * a.heads * (a.head_dim + a.latent.value_dim)
    return (work + Work("", device.value * moved, flops)
            + product("", device, float(few + made), kv_b, 0))


def dense(model: ModelSpec, hw: Hardware, tokens: int) -> Work:
    """A dense block: T rows times 3 H I values."""
    assert model.dense
    wide = 2 * model.hidden + 3 * model.dense.hidden
    return (product("attention", hw.device, tokens, 3.0 * model.hidden * model.dense.hidden, wide)
            + Work("", fixed=hw.overhead.attention))


def gate(model: ModelSpec, hw: Hardware, tokens: int) -> Work:
    """T rows times E H values; E float32 scores of each are written and read."""
    work = product("gate", hw.device, tokens, float(model.experts * model.hidden), model.hidden)
    return work + Work("", 8.0 * tokens * model.experts, fixed=hw.overhead.gate)


def pack(hw: Hardware, rows: float, units: float) -> Work:
    """Rows of so many values are read and written: 2 v rows units bytes."""
    return Work("pack", 2.0 * hw.device.value * rows * units, fixed=hw.overhead.pack)


def experts(model: ModelSpec, hw: Hardware, shards: int, rows: np.ndarray) -> tuple[np.ndarray, ...]:
    """Bytes, FLOPs, seconds, and bytes of weights that are copied, of each expert or shard, for its rows `[…]` float64.

    3 H I / t values; a row has 2 H + 3 I / t values. One after another, each the longer of both, if any row comes.
    """
    assert model.moe
    width = -(-model.moe.hidden // shards)
    values, wide = 3.0 * model.hidden * width, 2 * model.hidden + 3 * width
    there, device = np.minimum(rows, 1.0), hw.device  # of an expected part of a row: how likely there is one
    moved = there * device.weight * values + device.value * rows * wide
    flops = 2.0 * rows * values
    seconds = np.maximum(moved / (device.rate * device.rate_share), flops / (device.flops * device.flops_share))
    copied = np.where(rows > device.few, device.weight * values, 0.0) if device.copy_rate else np.zeros_like(rows)
    return moved, flops, seconds + there * hw.overhead.expert + copied / (device.copy_rate or 1.0), copied


def shared(model: ModelSpec, hw: Hardware, tokens: int) -> Work:
    """The shared expert: T rows times 3 H I values of its own."""
    assert model.moe
    width = model.moe.shared_hidden
    work = product("expert", hw.device, tokens, 3.0 * model.hidden * width, 2 * model.hidden + 3 * width)
    return work + Work("", fixed=hw.overhead.expert)


def combine(model: ModelSpec, hw: Hardware, tokens: int, shards: int) -> Work:
    """K answers of each token, or t parts of each in float32, are read and summed; x is read and written."""
    assert model.moe
    answers = tokens * model.moe.top_k * shards * model.hidden
    each = hw.device.value if shards == 1 else 4
    return Work("combine", float(each * answers + 2 * hw.device.value * tokens * model.hidden), 2.0 * answers,
                hw.overhead.combine)


def head(model: ModelSpec, hw: Hardware, wanted: int) -> Work:
    """B rows times V H values; V float32 logits of each are written and read."""
    work = product("head", hw.device, wanted, float(model.vocabulary * model.hidden), model.hidden)
    return work + Work("", 8.0 * wanted * model.vocabulary, fixed=hw.overhead.head)


def team_bytes(model: ModelSpec, device: Device, team: int, tokens: int) -> tuple[float, float]:
    """Bytes that a rank sends to its team before and behind an attention (`exchange.team`): (t - 1) T H v and
    (t - 1) T H 4."""
    return float((team - 1) * tokens * model.hidden * device.value), float((team - 1) * tokens * model.hidden * 4)


def team_join(model: ModelSpec, hw: Hardware, team: int, tokens: int) -> Work:
    """The t float32 parts of each token are read and summed; x is read and written."""
    moved = (4.0 * team + 2 * hw.device.value) * tokens * model.hidden
    return Work("attention", moved, float(team * tokens * model.hidden), hw.overhead.combine)
