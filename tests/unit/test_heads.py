"""Which heads a rank has, and what it keeps of their weights."""

from dataclasses import replace

import numpy as np
import pytest
from helpers import MOE
from hypothesis import given
from hypothesis import strategies as st

from hpcmoe import spec
from hpcmoe.files import pieces
from hpcmoe.files.drawn import Drawn
from hpcmoe.model import heads
from hpcmoe.slots import Shard
from hpcmoe.spec import Attention, Latent


@given(kv=st.integers(1, 6), group=st.integers(1, 6), ranks=st.integers(1, 8))
def test_each_query_head_finds_its_key_head_on_its_rank(kv, group, ranks):
    a = Attention(kv * group, kv, 2)
    if ranks > a.heads:
        return
    first = 0
    for rank in range(ranks):
        mine = Shard(rank, ranks)
        here, held = heads.share(a, mine), heads.kv_heads(a, mine)
        assert here.heads % here.kv_heads == 0 and here.kv_heads == len(held)
        for head in range(here.heads):
            assert held[head // (here.heads // here.kv_heads)] == (first + head) // group
        first += here.heads
    assert first == a.heads


@pytest.mark.parametrize("ranks, held", [(1, [[0, 1, 2]]), (3, [[0], [1], [2]]), (4, [[0], [0, 1, 1], [1, 1, 2], [2]])])
def test_a_key_head_whose_queries_straddle_two_ranks_is_on_both(ranks, held):
    assert [heads.kv_heads(Attention(12, 3, 2), Shard(rank, ranks)) for rank in range(ranks)] == held


@pytest.mark.parametrize("attention", [
    Attention(6, 3, 4, bias=True, output_bias=True, sinks=True, qk_norm="head"),
    Attention(6, 6, 4, latent=Latent(8, 2, 6, 10)),
    Attention(6, 6, 4, latent=Latent(8, 2, 6)),
])
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_a_rank_keeps_its_heads_rows_and_columns(attention, ranks):
    model = replace(MOE, attention=attention)
    source = Drawn(model, 1)
    for tensor in spec.layer_tensors(model, 1):
        whole = np.concatenate(list(source.blocks(tensor)))
        for rank in range(ranks):
            mine = Shard(rank, ranks)
            kept = heads.cut(model, Shard(), mine)(tensor)
            got = np.concatenate(list(pieces.blocks(source, kept)))
            assert got.shape == kept.shape
            np.testing.assert_array_equal(got, by_hand(attention, tensor.kind, whole, mine))


def by_hand(a: Attention, kind: str, whole: np.ndarray, mine: Shard) -> np.ndarray:
    """What should be there, head by head."""
    heads_ = range(*mine.span(a.heads))
    if kind == "attention/o":
        parts = np.split(whole, a.heads, axis=1)
        return np.concatenate([parts[head] for head in heads_], axis=1)
    if kind in ("attention/q", "attention/kv_b", "attention/sinks"):
        parts = np.split(whole, a.heads)
        return np.concatenate([parts[head] for head in heads_])
    if kind in ("attention/qkv", "attention/qkv_bias"):
        q, k, v = np.split(whole, [a.query_width, a.query_width + a.kv_width])
        q, k, v = np.split(q, a.heads), np.split(k, a.kv_heads), np.split(v, a.kv_heads)
        kv = heads.kv_heads(a, mine)
        return np.concatenate([*(q[h] for h in heads_), *(k[h] for h in kv), *(v[h] for h in kv)])
    return whole
