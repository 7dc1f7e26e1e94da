"""Attention with a latent: its two forms are one, and what the cache keeps of a token."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcmoe.array import BFLOAT16, FLOAT32
from hpcmoe.kernels.rows import compute_alone
from hpcmoe.model import cache, latent
from hpcmoe.spec import Attention, Dense, Latent, ModelSpec, latent_of

V3 = ModelSpec("v3", 61, 7168, 129280, 4096, Attention(128, 128, 128, latent=Latent(512, 64, 128, 1536)), Dense(1, 61))


@settings(deadline=None)
@given(n=st.integers(1, 5), cached=st.integers(0, 9), heads=st.integers(1, 5), dim=st.integers(1, 9),
       rank=st.integers(1, 9), turning=st.integers(1, 3), value=st.integers(1, 9), seed=st.integers(0, 99),
       alone=st.booleans())
def test_the_absorbed_form_equals_the_plain_one(n, cached, heads, dim, rank, turning, value, seed, alone):
    rng = np.random.default_rng(seed)
    c = Latent(rank, 2 * turning, value)
    a = Attention(heads, heads, dim, latent=c, score_factor=1.3)
    arrays = [rng.standard_normal(shape, np.float32) for shape in (
        (heads * (dim + value), rank), (n, heads, dim), (n, heads, 2 * turning), (cached + n, rank + 2 * turning))]
    compute_alone(alone)
    try:
        plain, absorbed = (form(a, c, *arrays) for form in (latent.expanded, latent.absorbed))
    finally:
        compute_alone(False)
    assert plain.shape == (n, heads * value)
    np.testing.assert_allclose(absorbed, plain, rtol=1e-5, atol=1e-5)


def test_at_deepseek_v3s_size_they_are_equal_within_1e5_and_the_cache_keeps_576_values():
    rng, a, c = np.random.default_rng(0), V3.attention, latent_of(V3)
    kv_b = rng.standard_normal((128 * 256, 512), np.float32) * np.float32(512 ** -0.5)
    known = rng.standard_normal((300, 576), np.float32)
    plain, turned = rng.standard_normal((1, 128, 128), np.float32), rng.standard_normal((1, 128, 64), np.float32)
    one, other = (form(a, c, kv_b, plain, turned, known) for form in (latent.expanded, latent.absorbed))
    assert np.abs(one - other).max() <= 1e-5 * np.abs(one).max()
    assert cache.values(V3) == 512 + 64
    assert cache.open_cache(V3, 1, 3, BFLOAT16).kept.nbytes == cache.size(V3, 1, 3, 2) == 61 * 3 * 576 * 2


def test_the_cache_gives_back_all_that_a_sequence_put_in():
    found = cache.LatentCache(V3, 2, 5, FLOAT32)
    rows = np.arange(4 * 576, dtype=np.float32).reshape(4, 576)
    np.testing.assert_array_equal(found.extend(3, 1, 0, rows[:3]), rows[:3])
    np.testing.assert_array_equal(found.extend(3, 1, 3, rows[3:]), rows)
