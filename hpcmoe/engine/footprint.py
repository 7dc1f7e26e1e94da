"""What a rank takes of its GPU, from shapes alone: the arrays of `device`, `engine.gpu` and `engine.room` in bytes.

Needs no CuPy. T tokens of a step, any of whose micro-batches may have them all, for spans stay whole; B rows whose
logits are wanted; N rows that the fullest rank computes. Values are bfloat16, 2 bytes.
"""

from dataclasses import dataclass
from math import prod

from hpcmoe.device.scratch import (
    ABSORBED,
    BLOCK,
    LOGITS,
    RECURRING,
    TILE,
    TOGETHER,
    WORKERS,
    WORKSPACE,
    at_once,
    parts,
    pieces,
    whole_blocks,
)
from hpcmoe.exchange.route import trailer_width
from hpcmoe.model import cache
from hpcmoe.model.heads import share
from hpcmoe.slots import Placements, Shard, most
from hpcmoe.spec import Attention, Latent, ModelSpec, Tensor

GRANULE = 1 << 21
"""Bytes of a page of CUDA's: what is larger than half of one takes whole pages."""
GROWTH = 2
"""Buffers and mirrors that grow do so by doubling, so they are less than twice the largest that was asked for."""
OVERHEAD = 1 << 29
"""Bytes for what is no array of ours: kernels, graphs and handles of CUDA, cuBLAS and cuDNN, and the ends of pages."""


@dataclass(frozen=True)
class Step:
    """A step at its fullest, on the fullest rank."""

    model: ModelSpec
    placements: Placements
    tokens: int
    """T"""
    wanted: int
    """B"""
    team: int = 1
    """ranks over which heads are split"""

    @property
    def together(self) -> int:
        """Tokens of a team."""
        return self.team * self.tokens

    @property
    def ranks(self) -> int:
        """R"""
        return self.placements[0].ranks

    @property
    def shards(self) -> int:
        """t, of an expert"""
        return self.placements[0].shards

    @property
    def computed(self) -> int:
        """N under balanced routing: the answers of all ranks' tokens, by the slots of the fullest rank; each shard has
        a part of as many."""
        moe = self.model.moe
        if not moe:
            return 0
        return -(-self.ranks * self.tokens * moe.top_k * most(self.placements) // moe.experts)

    @property
    def trailer(self) -> int:
        """int16 values behind a row on its way to the experts."""
        return trailer_width(most(self.placements), self.model.moe.top_k) if self.model.moe else 0


def tensor(found: Tensor) -> int:
    """Bytes of a weight as `device.weights.keep` keeps it: matrices in bfloat16, vectors in float32 at most."""
    size = (4 if len(found.shape) == 1 else 2) * found.values
    return -(-size // GRANULE) * GRANULE if size > GRANULE // 2 else size


def kv_cache(model: ModelSpec, sequences: int, length: int) -> int:
    """Bytes of a `device.attention.KvCache`: keys and values, a cosine and a sine for each pair of a head, the parts of
    sums along long sequences. Or of a `device.latent.LatentCache`, with what attention to it takes once."""
    a, length = model.attention, whole_blocks(length)
    kept = cache.size(model, sequences, length, 2) + 2 * length * a.turning
    return kept + (_latent(a, a.latent, length) if a.latent else
                   4 * prod(parts(a.heads, a.head_dim, sequences, length)))


def _latent(a: Attention, c: Latent, length: int) -> int:
    """Plain keys and values of one sequence, for the heads that are computed at once; the parts of absorbed sums."""
    width = a.query_dim + c.value_dim
    plain = 2 * at_once(a.heads, width, length) * length * width
    return plain + (4 * 2 * WORKERS * TOGETHER * (c.rank + 2) if (c.rank, c.rotary_dim) == ABSORBED else 0)


def exchange(step: Step) -> int:
    """Bytes of a lane's four buffers under balanced routing: rows out and in, with trailers; answers out and in.

    A token goes to a rank once, and its K answers come home one by one, those of shards in float32.
    """
    moe, T, H = step.model.moe, step.tokens, step.model.hidden
    if not moe:
        return 0
    ranks, answers, wide = step.ranks, moe.top_k * step.shards, 1 if step.shards == 1 else 2
    rows = T * min(answers, ranks) + min(step.computed, ranks * T)
    return GROWTH * 2 * (rows * (H + step.trailer) + (step.computed + T * answers) * H * wide)


def workspace(step: Step, micro_batches: int) -> int:
    """Bytes beside weights, cache and exchange.

    What a segment needs for itself only is given back at its end. All segments are added up nevertheless: the pool's
    blocks seldom fit the arrays of another segment, and it gives blocks back only when memory is full.
    """
    return micro_batches * _kept(step) + _attention(step) + _feed_forward(step) + _head(step) + WORKSPACE + OVERHEAD


def _kept(step: Step) -> int:
    """Of a micro-batch, as long as its step takes: its `Room`, and what its `Work` refers to."""
    model, moe, T = step.model, step.model.moe, step.tokens
    K, ranks = moe.top_k if moe else 1, step.ranks
    streams = 2 * T * model.hidden * (3 if moe and moe.shared_hidden else 2)  # x, normed, the shared expert's answer
    tiles = max(1, -(-T // TILE))
    route = 4 * (2 + 3 * step.shards) * T * K + 4 * 2 * tiles * ranks  # [T, K], [T, K t]; of tiles
    if moe and any(placement.replicated for placement in step.placements):
        route += 4 * 5 * T * K + 4 * 2 * tiles * moe.experts
    load = 8 * model.layers * max(model.experts, 1)
    mirrors = GROWTH * (T * (5 * 4 + 8) + step.computed * 2 * 4)  # int32 and u of tokens; source and target_row
    return streams + route + load + mirrors + _team(step)


def _team(step: Step) -> int:
    """A `gpu_team.TeamRoom`: tokens of the team, what a rank's heads add to them in float32, and what all add to its
    own."""
    H = step.model.hidden
    return (6 * step.together + 2 * step.tokens) * H + GROWTH * 16 * step.together if step.team > 1 else 0


def _attention(step: Step) -> int:
    """The normed input, queries with keys and values, the turned queries, attention's output `[T, heads * head_dim]`,
    and the block's `[T, H]`, that of the layer before beside it; then the gate's float32 logits. Once more for the
    tokens that graphs take, which have a pool of their own."""
    a, H, recurring = share(step.model.attention, Shard(0, step.team)), step.model.hidden, min(step.wanted, RECURRING)
    T = step.together + recurring
    if a.latent:
        values = T * (3 * H + _latent_values(a, a.latent)) + BLOCK * (a.query_width + a.mixed_width)
        values += _absorbed(a, a.latent, step.together) + _absorbed(a, a.latent, recurring)
    else:
        values = T * (3 * H + 3 * a.query_width + 2 * a.kv_width) + 2 * BLOCK * a.query_width
    return 2 * values + 4 * T * step.model.experts


def _latent_values(a: Attention, c: Latent) -> int:
    """Of a token: the vector for its query, the query, what is kept, and the answers of all heads."""
    return c.query_rank + a.query_width + c.rank + c.rotary_dim + a.mixed_width


def _absorbed(a: Attention, c: Latent, tokens: int) -> int:
    """Values of the absorbed form: queries with what turns of them, as vectors too, and answers, as they come and as
    they go, of some tokens at once."""
    each = a.query_width + a.heads * (2 * c.rank + c.rotary_dim) + a.mixed_width
    return min(tokens, pieces(a.heads, c.rank)) * each


def _feed_forward(step: Step) -> int:
    """gate_up `[rows, 2 I]`, their product `[rows, I]`, and down's output, for dense layers, the shared expert (whose
    output is kept, but which has a weight for each row), and the rank's own experts, to all of which but one no row may
    come; these copy their rows first, and their trailers."""
    model, T, N, H = step.model, step.tokens, step.computed, step.model.hidden
    values = T * (3 * model.dense.hidden + H) if model.dense else 0
    if model.moe:
        values += T * (3 * model.moe.shared_hidden + 1) if model.moe.shared_hidden else 0
        width, wide = -(-model.moe.hidden // step.shards), 1 if step.shards == 1 else 2
        values += N * (3 * width + (1 + wide) * H + step.trailer)
    return 2 * values


def _head(step: Step) -> int:
    """The normed rows and logits of as many rows as are held at once; the token, target and probability of all."""
    rows = min(step.wanted, max(1, LOGITS // step.model.vocabulary))
    return 2 * rows * (step.model.hidden + step.model.vocabulary) + 2 * 8 * step.wanted
