"""Every kernel against the slow oracle, over random shapes."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcmoe import reference
from hpcmoe.array import BFLOAT16, FLOAT32, narrow, widen
from hpcmoe.kernels import choice, combine, pack, rope
from hpcmoe.kernels import linear as linear_module
from hpcmoe.kernels.attention import attend
from hpcmoe.kernels.gate import choose
from hpcmoe.kernels.linear import linear
from hpcmoe.kernels.norm import rms_norm
from hpcmoe.kernels.rows import compute_alone
from hpcmoe.model.expert import feed_forward
from hpcmoe.model.weights import Swiglu
from hpcmoe.spec import Attention, Dense, ModelSpec, Moe, Yarn

SIZE = st.integers(1, 9)
SEED = st.integers(0, 2**32)
DTYPES = pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16], ids=["float32", "bfloat16"])


def draw(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def close(got: np.ndarray, want: np.ndarray, dtype: np.dtype) -> bool:
    """Equal to float32's accuracy, or to one step of bfloat16 where sums end near the middle between two."""
    tolerance = 1e-5 if dtype == FLOAT32 else 2.0**-7
    return got.dtype == dtype and np.allclose(got.astype(np.float64), want, rtol=tolerance, atol=tolerance)


@DTYPES
@given(T=st.integers(0, 9), H=SIZE, N=SIZE, seed=SEED)
def test_linear(dtype, T, H, N, seed):
    x, w = draw(seed, T, H).astype(dtype), draw(seed + 1, N, H)
    assert close(linear(x, w), x.astype(np.float64) @ w.T, dtype)


@DTYPES
@given(T=st.integers(0, 9), H=SIZE, seed=SEED)
def test_rms_norm(dtype, T, H, seed):
    x, w = draw(seed, T, H).astype(dtype), draw(seed + 1, H)
    r = reference.rounding("float32" if dtype == FLOAT32 else "bfloat16")
    assert close(rms_norm(x, w, 1e-5), reference.norm(x.astype(np.float64), w, 1e-5, r), dtype)


@DTYPES
@given(T=SIZE, H=SIZE, width=SIZE, seed=SEED)
def test_swiglu(dtype, T, H, width, seed):
    x, gate_up, down = draw(seed, T, H).astype(dtype), draw(seed + 1, 2 * width, H), draw(seed + 2, H, width)
    r = reference.rounding("float32" if dtype == FLOAT32 else "bfloat16")
    want = reference.swiglu(x.astype(np.float64), gate_up, down, r)
    got = feed_forward(Swiglu(gate_up, down), x)
    assert close(got, want, dtype) if dtype == FLOAT32 else np.allclose(got.astype(np.float64), want, 2e-2, 0.1)


def test_swiglu_of_a_very_negative_gate_is_zero_and_silent():
    with np.errstate(all="raise"):
        weights = Swiglu(np.ones((2, 1), np.float32), np.ones((1, 1), np.float32))
        assert np.array_equal(feed_forward(weights, np.full((1, 1), -1e4, np.float32)), [[0]])


@DTYPES
@given(T=SIZE, H=SIZE, width=SIZE, limit=st.sampled_from([0.0, 0.7, 7.0]), seed=SEED)
def test_an_expert_with_biases_and_a_bound(dtype, T, H, width, limit, seed):
    x, gate_up, down = draw(seed, T, H).astype(dtype), draw(seed + 1, 2 * width, H), draw(seed + 2, H, width)
    more, last = draw(seed + 3, 2 * width), draw(seed + 4, H)
    r = reference.rounding("float32" if dtype == FLOAT32 else "bfloat16")
    model = ModelSpec("m", 1, H, 5, 9, Attention(1, 1, 2), None, Moe(1, 1, width, expert_bias=True, limit=limit))
    given_weights = {"gate_up": gate_up, "gate_up_bias": more, "down": down, "down_bias": last}
    want = reference.expert(model, lambda name: given_weights[name.split("/")[-1]], 0, x.astype(np.float64), r)
    got = feed_forward(Swiglu(gate_up, down, more, last), x, limit)
    step = 2.0**-6 * np.abs(want).max()  # sums of what was rounded may cancel
    assert close(got, want, dtype) if dtype == FLOAT32 else np.allclose(got.astype(np.float64), want, 0, step + 0.1)


@given(heads=st.integers(1, 3), half=st.integers(1, 5), turning=st.integers(0, 1), position=st.integers(0, 5000),
       yarn=st.none() | st.builds(Yarn, st.floats(1, 40), st.integers(8, 4096), st.just(32.0), st.floats(0.5, 2),
                                  st.booleans(), st.floats(0.5, 1.5)), seed=SEED)
def test_rope(heads, half, turning, position, yarn, seed):
    x = draw(seed, 1, heads, 2 * half)
    a = Attention(heads, heads, 2 * half, rotary_dim=2 * turning, yarn=yarn)
    want = np.array([[reference.rope(h.astype(np.float64), position, a, lambda v: v) for h in x[0]]])
    assert np.allclose(rope.rotate(x, *rope.tables(np.array([position]), a, FLOAT32)), want, atol=3e-3)


@settings(deadline=None)
@given(n=SIZE, cached=st.integers(0, 9), kv=st.integers(1, 3), group=st.integers(1, 3), window=st.integers(0, 6),
       sinks=st.booleans(), seed=SEED)
def test_attention_over_a_cache_equals_the_end_of_a_whole_sequence(n, cached, kv, group, window, sinks, seed):
    d, heads, m = 4, kv * group, n + cached
    model = ModelSpec("m", 1, 6, 5, 99, Attention(heads, kv, d, window=window, sinks=sinks), Dense(1, 1))
    weights = {"attention/qkv": draw(seed, (heads + 2 * kv) * d, 6).astype(np.float64),
               "attention/sinks": draw(seed + 2, heads)}
    x = draw(seed + 1, m, 6).astype(np.float64)
    want = reference.attention(model, 0, weights.__getitem__, x, lambda v: v)[cached:]
    both = (x @ weights["attention/qkv"].T).astype(np.float32).reshape(m, heads + 2 * kv, d)
    angles = rope.tables(np.arange(m), model.attention, FLOAT32)
    q, k = rope.rotate(both[:, :heads], *angles), rope.rotate(both[:, heads:heads + kv], *angles)
    got = attend(q[cached:], k.transpose(1, 0, 2), both[:, heads + kv:].transpose(1, 0, 2), window, d ** -0.5,
                 weights["attention/sinks"] if sinks else None)
    assert np.allclose(got, want, atol=1e-4)


@st.composite
def moes(draw):
    """Any gate of the spec."""
    groups, size = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    kept = draw(st.integers(1, groups))
    return Moe(groups * size, draw(st.integers(1, kept * size)), 1, renormalise=draw(st.booleans()), scale=1.5,
               score=draw(st.sampled_from(["softmax", "sigmoid", "softmax_of_chosen"])), groups=groups,
               groups_kept=kept, group_score=draw(st.sampled_from(["max", "top2"])),
               selection_bias=draw(st.booleans()))


@given(T=st.integers(0, 9), moe=moes(), seed=SEED)
def test_gate(T, moe, seed):
    logits, bias = draw(seed, T, moe.experts), draw(seed + 1, moe.experts) if moe.selection_bias else None
    route = choose(logits, bias, moe)
    assert route.expert.shape == route.weight.shape == (T, moe.top_k) and route.weight.dtype == np.float32
    for t in range(T):
        expert, weight = reference.choose(moe, logits[t].astype(np.float64), 0 if bias is None else bias, lambda v: v)
        assert route.expert[t].tolist() == expert and np.allclose(route.weight[t], weight, atol=1e-5)


def test_gate_gives_a_tie_to_the_lower_expert():
    assert choose(np.zeros((1, 5), np.float32), None, Moe(5, 3, 1)).expert.tolist() == [[0, 1, 2]]


@DTYPES
@given(T=SIZE, K=st.integers(1, 4), H=SIZE, seed=SEED)
def test_combine(dtype, T, K, H, seed):
    rows, weight = draw(seed, T * K, H).astype(dtype), draw(seed + 1, T, K)
    home = np.random.default_rng(seed).permutation(T * K).reshape(T, K)
    want = np.einsum("tk,tkh->th", weight.astype(np.float64), rows.astype(np.float64)[home])
    assert close(combine.combine(rows, home, weight), want, dtype)


@DTYPES
@given(T=SIZE, N=st.integers(0, 9), H=SIZE, W=st.sampled_from([0, 8, 16]), seed=SEED)
def test_pack_and_unpack(dtype, T, N, H, W, seed):
    rng = np.random.default_rng(seed)
    x, token = draw(seed, T, H).astype(dtype), rng.integers(0, T, N)
    trailer = rng.integers(-1, 9, (N, W)).astype(np.int16)
    message = np.empty((N, H * dtype.itemsize // 2 + W), np.uint16)
    pack.pack(x, token, trailer, message)
    assert np.array_equal(pack.unpack(message, H, dtype), x[token])
    assert np.array_equal(pack.trailer(message, H, dtype, W), trailer)


@given(B=st.integers(0, 5), V=st.integers(1, 50), seed=SEED)
def test_greedy_and_logprobs(B, V, seed):
    logits = draw(seed, B, V)
    token = choice.greedy(logits)
    p = np.exp(logits.astype(np.float64))
    want = np.log(p / p.sum(1, keepdims=True))[np.arange(B), token]
    assert token.tolist() == [row.tolist().index(row.max()) for row in logits]
    assert np.allclose(choice.logprobs(logits, token), want, atol=1e-5)


@given(V=st.integers(1, 30), temperature=st.floats(0.05, 5), top_p=st.floats(1e-6, 1),
       u=st.floats(0, 1, exclude_max=True), seed=SEED)
def test_a_sample_is_among_the_likeliest_and_where_u_falls(V, temperature, top_p, u, seed):
    logits = draw(seed, 1, V)
    token, = choice.sample(logits, temperature, top_p, np.array([u]))
    p = np.exp((logits[0].astype(np.float64) - logits.max()) / temperature)
    p /= p.sum()
    likelier = [sum(p[s] for s in range(V) if (-p[s], s) < (-p[t], t)) for t in range(V)]
    assert likelier[token] < top_p + 1e-9
    kept = [t for t in range(V) if likelier[t] < top_p - 1e-9]
    low = sum(p[[t for t in kept if t < token]]) / sum(p[kept])
    assert token not in kept or low - 1e-6 <= u <= low + p[token] / sum(p[kept]) + 1e-6


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.7, 1.0), (1.3, 0.8)])
def test_10000_draws_are_distributed_as_the_model_says(temperature, top_p):
    """Chi-square at 0.1 %: the 0.999 quantile for 19 degrees of freedom is 43.8."""
    logits = draw(3, 1, 20)
    u = np.array([choice.uniform(7, n % 100, n // 100) for n in range(10_000)])
    token = choice.sample(np.repeat(logits, len(u), axis=0), temperature, top_p, u)
    p = np.exp(logits[0].astype(np.float64) / temperature)
    order = np.argsort(-p)
    p[order[int((np.cumsum(p[order]) < top_p * p.sum()).sum()) + 1:]] = 0
    p /= p.sum()
    counts = np.bincount(token, minlength=20)
    assert counts[p == 0].sum() == 0
    assert (np.square(counts - 10_000 * p)[p > 0] / (10_000 * p[p > 0])).sum() < 43.8


def test_a_very_low_temperature_takes_the_likeliest():
    logits = draw(5, 50, 40)
    u = np.random.default_rng(0).random(50)
    assert choice.sample(logits, 1e-3, 1.0, u).tolist() == choice.greedy(logits).tolist()


@given(st.lists(st.floats(width=32, allow_nan=False), max_size=40))
def test_bfloat16_bits_go_there_and_back(values):
    x = np.array(values, np.float32)
    with np.errstate(over="ignore"):
        assert np.array_equal(widen(narrow(x)), x.astype(ml_dtypes.bfloat16).astype(np.float32))


@pytest.mark.parametrize("small", [set(), {"SkylakeX"}])
@pytest.mark.parametrize("T", [0, 1, 2, 4, 5, 8, 9])
def test_few_rows_are_multiplied_by_a_weight_in_pieces(monkeypatch, small, T):
    monkeypatch.setattr(linear_module, "SMALL_KERNELS", small)
    monkeypatch.setattr(linear_module, "FEW", 8 if small else 4)
    monkeypatch.setattr(linear_module, "PIECE", 64)
    x, w = draw(1, T, 24), draw(2, 50, 24)
    assert np.allclose(linear(x, w), x.astype(np.float64) @ w.T, atol=1e-5)


def test_rows_alone_have_the_same_bits_in_any_company():
    x, w = draw(1, 37, 300), draw(2, 500, 300)
    compute_alone(True)
    try:
        whole = linear(x, w)
        assert all(np.array_equal(linear(x[a:b].copy(), w), whole[a:b]) for a, b in [(0, 1), (3, 5), (7, 36), (36, 37)])
    finally:
        compute_alone(False)
