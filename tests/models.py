"""Tiny models for tests, and batches to put through them."""

from dataclasses import replace

import numpy as np

from hpcmoe.spec import Attention, Dense, Latent, ModelSpec, Moe, Yarn
from hpcmoe.types import Batch, Span

TINY = ModelSpec("tiny", layers=4, hidden=32, vocabulary=97, context=64,
                 attention=Attention(heads=4, kv_heads=2, head_dim=12),
                 dense=Dense(40, 1), moe=Moe(experts=6, top_k=2, hidden=24))
"""One dense layer, then three with six experts."""

LATENT = Attention(heads=4, kv_heads=4, head_dim=10, latent=Latent(rank=12, rotary_dim=6, value_dim=8))

VARIANTS = {
    "tiny": TINY,
    "shared": replace(TINY, moe=replace(TINY.moe, shared_hidden=20, renormalise=False, scale=1.5)),
    "dense in between": replace(TINY, dense=Dense(40, (0, 2)), tied_head=True),
    "dense last": replace(TINY, dense=Dense(40, (3,))),
    "attention extras": replace(TINY, attention=replace(TINY.attention, bias=True, qk_norm="head", clip=1.25)),
    "full norm": replace(TINY, attention=replace(TINY.attention, qk_norm="full")),
    "sigmoid groups": replace(TINY, moe=replace(TINY.moe, score="sigmoid", selection_bias=True, groups=3, groups_kept=2,
                                                scale=2.5)),
    "chosen softmax": replace(TINY, moe=replace(TINY.moe, score="softmax_of_chosen", groups=2, group_score="max",
                                                shared_hidden=20, shared_gate=True)),
    "window": replace(TINY, attention=replace(TINY.attention, window=5)),
    "latent": replace(TINY, attention=LATENT),
    "latent queries, yarn": replace(TINY, attention=replace(
        LATENT, latent=replace(LATENT.latent, query_rank=14), score_factor=1.3,
        yarn=Yarn(4, 8, magnitude=1.1))),
    "sinks and biases": replace(
        TINY, norm_weight_first=True,
        attention=replace(TINY.attention, sinks=True, bias=True, output_bias=True, window=4, window_layers=(1, 3),
                          rotary_dim=6, yarn=Yarn(2, 16, whole=False)),
        moe=replace(TINY.moe, score="softmax_of_chosen", logit_bias=True, expert_bias=True, limit=1.5)),
    "one expert": replace(TINY, moe=replace(TINY.moe, experts=1, top_k=1)),
    "all experts": replace(TINY, moe=replace(TINY.moe, experts=5, top_k=5)),
    "no experts": replace(TINY, moe=None, dense=Dense(40, 4)),
    "experts only": replace(TINY, dense=None),
}


def batch(*pieces: tuple[int, int, list[int]]) -> Batch:
    """A micro-batch of pieces (slot, tokens cached before it, its tokens), with the logits of all rows asked for.

    Without pieces it is what a rank that ran dry takes part with.
    """
    tokens: list[int] = []
    position: list[int] = []
    spans = []
    for slot, cached, more in pieces:
        spans.append(Span(slot, len(tokens), len(more), cached))
        tokens += list(more)
        position += range(cached, cached + len(more))
    return Batch(np.array(tokens, np.int32), np.array(position, np.int32), tuple(spans),
                 np.arange(len(tokens), dtype=np.int32), np.zeros(len(tokens), np.int64),
                 np.full(len(tokens), -1, np.int32))
