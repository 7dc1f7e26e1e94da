"""Each kernel against its twin in NumPy, over random shapes; those of attention are in test_attention.py."""

import numpy as np
import pytest
from bits import BF16, close, here, some, there

from hpcmoe.exchange import replicas
from hpcmoe.exchange.route import plan_send, trailer_width
from hpcmoe.kernels import choice as cpu_choice
from hpcmoe.kernels import combine as cpu_combine
from hpcmoe.kernels import gate as cpu_gate
from hpcmoe.kernels import norm as cpu_norm
from hpcmoe.kernels import swiglu as cpu_swiglu
from hpcmoe.model.expert import feed_forward
from hpcmoe.model.weights import Swiglu
from hpcmoe.placement.plan import linear
from hpcmoe.slots import Placement
from hpcmoe.spec import Moe
from hpcmoe.types import SAMPLED, sampled

pytestmark = pytest.mark.gpu
SEEDS = range(6)


@pytest.mark.parametrize("first", [False, True], ids=["", "weight first"])
@pytest.mark.parametrize("seed", SEEDS)
def test_norms(seed, first):
    from hpcmoe.device import norm
    rng = np.random.default_rng(seed)
    T, H = int(rng.integers(1, 70)), 8 * int(rng.integers(1, 900))
    x, y, weight = some(rng, T, H), some(rng, T, H), rng.standard_normal(H).astype(np.float32)
    close(here(norm.rms_norm(there(x), there(weight), 1e-5, None, first)), cpu_norm.rms_norm(x, weight, 1e-5, first))
    index = rng.integers(0, T, 5).astype(np.int32)
    close(here(norm.rms_norm(there(x), there(weight), 1e-5, there(index), first)),
          cpu_norm.rms_norm(x[index], weight, 1e-5, first))
    both, out = there(x), there(np.zeros_like(x))
    norm.add_norm(both, there(y), there(weight), 1e-5, out, first)
    assert np.array_equal(here(both), x + y)
    close(here(out), cpu_norm.rms_norm(x + y, weight, 1e-5, first))
    both = there(x)
    norm.add(both, there(y))
    assert np.array_equal(here(both), x + y)


@pytest.mark.parametrize("seed", SEEDS)
def test_norms_of_heads(seed):
    from hpcmoe.device import norm
    rng = np.random.default_rng(seed)
    T, heads, d = int(rng.integers(1, 9)), int(rng.integers(1, 9)), 2 * int(rng.integers(1, 100))
    part = d if seed % 2 else heads * d
    x, weight = some(rng, T, (heads + 3) * d), rng.standard_normal(part).astype(np.float32)
    got, want = there(x), x.copy()
    norm.head_norm(got, d, heads * d, there(weight), 1e-6)
    want[:, d:(heads + 1) * d] = cpu_norm.rms_norm(x[:, d:(heads + 1) * d].reshape(-1, part), weight,
                                                   1e-6).reshape(T, -1)
    close(here(got), want)


@pytest.mark.parametrize(("bias", "limit"), [(False, 0), (True, 0), (True, 1.5)], ids=["", "biases", "bound"])
@pytest.mark.parametrize("counts", [[3], [0, 0], [1, 0, 5, 2], [200, 300, 1], [16] * 16])
def test_experts_of_one_rank(counts, bias, limit):
    import cupy

    from hpcmoe.device.gemm import Gemm
    from hpcmoe.device.grouped import Grouped
    rng, H, width = np.random.default_rng(0), 64, 24
    experts = [(some(rng, 2 * width, H), some(rng, H, width), some(rng, 2 * width), some(rng, H)) for _ in counts]
    x, stream = some(rng, sum(counts), H), cupy.cuda.Stream(non_blocking=True)
    with stream:
        grouped = Grouped(Gemm(), stream)
        matrices = [[(there(expert[n]), there(expert[2 + n]) if bias else None) for expert in experts] for n in (0, 1)]
        got, parts = (grouped(there(x), counts, *matrices, limit, dtype) for dtype in (np.uint16, np.float32))
        stream.synchronize()
    first, want = 0, np.zeros(x.shape, BF16)
    for count, expert in zip(counts, experts):
        part = slice(first, first + count)
        first += count
        gate_up, down, *biases = (part.astype(np.float32) for part in expert)
        want[part] = feed_forward(Swiglu(gate_up, down, *(biases if bias else ())), x[part], limit)
    wide = want.astype(np.float32)
    assert parts.dtype == np.float32
    assert all(np.all(np.abs(here(y).astype(np.float32) - wide) <= 0.02 * max(1, np.abs(wide).max(initial=0)))
               for y in (got, parts))


def test_work_that_comes_again_is_a_graph():
    import cupy

    from hpcmoe.device.graph import Graphs
    stream, x, calls = cupy.cuda.Stream(non_blocking=True), cupy.zeros(4, np.float32), []

    def work():
        calls.append(1)
        x[...] += cupy.ones(4, np.float32) * 2  # with temporary arrays
    graphs = Graphs(stream)
    with stream:
        for _ in range(5):
            graphs.run("x", work)
    stream.synchronize()
    assert len(calls) == 2 and (x.get() == 10).all()


GATES = [Moe(8, 2, 8), Moe(256, 8, 8, score="sigmoid", selection_bias=True, groups=8, groups_kept=4, scale=2.5),
         Moe(60, 4, 8, renormalise=False, round_logits=True), Moe(16, 16, 8, score="softmax_of_chosen"),
         Moe(12, 3, 8, score="softmax_of_chosen", groups=4, groups_kept=2, group_score="max", round_weights=True),
         Moe(1, 1, 8), Moe(300, 40, 8), Moe(6, 2, 8, groups=6, groups_kept=3),
         Moe(32, 4, 8, score="softmax_of_chosen", logit_bias=True)]


@pytest.mark.parametrize("moe", GATES, ids=str)
@pytest.mark.parametrize("T", [0, 1, 63, 300])
def test_choice_of_experts(moe, T):
    import cupy

    from hpcmoe.device import gate
    rng = np.random.default_rng(T)
    logits = rng.standard_normal((T, moe.experts)).astype(np.float32)
    logits[:, ::3] = np.round(logits[:, ::3])  # ties
    bias = rng.standard_normal(moe.experts).astype(np.float32) if moe.selection_bias else None
    route, load = gate.make_route(T, moe.top_k, 3), cupy.zeros(moe.experts, np.uint64)
    sample = cupy.full((SAMPLED, 2, moe.top_k), 7, np.int16)
    added = rng.standard_normal(moe.experts).astype(np.float32) if moe.logit_bias else None
    gate.choose(moe, there(logits), *(None if bias is None else there(bias), route, load, sample[:, 1]),
                None if added is None else there(added))
    logits = logits if added is None else logits + added
    tokens = sampled(T)
    assert np.array_equal(here(sample)[:len(tokens), 1], here(route.expert)[tokens]) and (here(sample)[:, 0] == 7).all()
    rounded = logits.astype(BF16).astype(np.float32) if moe.round_logits else logits
    want = cpu_gate.choose(rounded, bias, moe)
    same = here(route.expert) == want.expert  # float32 sums may split a tie otherwise, seldom
    assert same.mean() > 0.999 if T else True
    rows = same.all(axis=1)
    assert np.allclose(here(route.weight)[rows], want.weight[rows], rtol=5e-3 if moe.round_weights else 1e-5)
    assert np.array_equal(here(load).astype(int), np.bincount(here(route.expert).ravel(), minlength=moe.experts))


@pytest.mark.parametrize("moe", GATES, ids=str)
@pytest.mark.parametrize("T", [1, 63, 300])
def test_what_a_bias_moves_is_counted(moe, T):
    import cupy

    from hpcmoe.device import gate
    rng = np.random.default_rng(T)
    logits, bias = rng.standard_normal((T, moe.experts)).astype(np.float32), rng.random(moe.experts).astype(np.float32)
    routes = [gate.make_route(T + 3, moe.top_k, 3) for _ in range(2)]
    load, moved = cupy.zeros(moe.experts, np.uint64), cupy.full(1, 5, np.uint64)
    for route, added in zip(routes, (there(bias), None)):
        gate.choose(moe, there(logits), added, route, load)
    gate.count_moved(*routes, T, moved)
    route, plain = (here(found.expert)[:T] for found in routes)
    assert int(moved[0]) == 5 + sum(e not in plain[t] for t in range(T) for e in route[t])


@pytest.mark.parametrize("E, K, R, shards", [
    (8, 2, 8, 1), (8, 2, 3, 1), (16, 4, 1, 1), (3, 3, 9, 1), (256, 8, 256, 1), (40, 16, 7, 1),
    (8, 2, 8, 2), (3, 3, 9, 3), (256, 8, 256, 4), (40, 16, 6, 2), (5, 1, 8, 8)])
@pytest.mark.parametrize("T", [0, 1, 64, 65, 500])
@pytest.mark.parametrize("bulk", [True, False], ids=["copy engines", "threads"])
def test_order_pack_and_combine(E, K, R, shards, T, bulk, monkeypatch):
    import cupy

    from hpcmoe.device import gate, rows
    if not bulk:
        monkeypatch.setattr(rows, "copies_in_bulk", lambda: False)
    rng, placement, H = np.random.default_rng(E + T), linear(E, R // shards).cut(shards), 72
    expert = np.argsort(rng.random((T, E)), axis=1)[:, :K].astype(np.int32)
    if T > 64:
        expert[: T // 2] = np.arange(K)  # a skew
    weight = rng.random((T, K)).astype(np.float32)
    route = gate.make_route(T, K, R, shards)
    route.expert[...], route.weight[...] = there(expert), there(weight)
    at = gate.make_map(placement, placement.slots)
    gate.order(route, at.rank, T, R)
    cupy.cuda.get_current_stream().synchronize()
    width = trailer_width(placement.most, K)
    want = plan_send(placement.slot[expert], placement, width)
    assert np.array_equal(route.counts, want.counts) and np.array_equal(route.home_counts, want.home_counts)
    laid = cupy.full(R, 7, np.int32)
    assert gate.lay(route, laid) and np.array_equal(here(laid), np.cumsum(want.counts) - want.counts)
    x = some(rng, T, H)
    for gap in (0, 3):
        base = (np.cumsum(want.counts) - want.counts + gap * np.arange(R)).astype(np.int32)
        out = cupy.full((len(want.token) + gap * R, H + width), 7, np.uint16)
        rows.pack(there(x), route, at, there(base), out, width)
        place = np.repeat(base - (np.cumsum(want.counts) - want.counts), want.counts) + np.arange(len(want.token))
        got = here(out)[place]
        assert np.array_equal(got[:, :H], x[want.token])
        assert np.array_equal(got[:, H:].view(np.int16), want.trailer)
    answers = some(rng, T * K, H) if shards == 1 else rng.standard_normal((T * K * shards, H)).astype(np.float32)
    base = (np.cumsum(want.home_counts) - want.home_counts).astype(np.int32)
    for each in (False, True):
        for shared in (None, some(rng, T, H)):
            total = there(x)
            rows.combine(total, there(answers), None if shared is None else there(shared), route, there(base), each)
            y = cpu_combine.combine(answers, want.home, weight, each, np.dtype(BF16))
            assert np.array_equal(here(total), x + (y if shared is None else y + shared))


@pytest.mark.parametrize("seed", SEEDS)
def test_swiglu(seed):
    from hpcmoe.device import swiglu
    from hpcmoe.device.gemm import Gemm
    rng = np.random.default_rng(seed)
    T, H, width = (int(n) for n in (rng.integers(0, 300), 8 * rng.integers(1, 40), 8 * rng.integers(1, 40)))
    x, gate_up, down = some(rng, T, H), some(rng, 2 * width, H), some(rng, H, width)
    both = some(rng, T, 2 * width)
    close(here(swiglu.activate(there(both))), cpu_swiglu.activate(both))
    close(here(swiglu.activate(there(both), 0.7)), cpu_swiglu.activate_within(both, 0.7))
    more, last = some(rng, 2 * width), some(rng, H)
    wide = Swiglu(*(weight.astype(np.float32) for weight in (gate_up, down, more, last)))
    for weights, biases, limit in (Swiglu(wide.gate_up, wide.down), (), 0), (wide, (there(more), there(last)), 1.5):
        want = feed_forward(weights, x.astype(np.float32), limit)
        got = here(swiglu.swiglu(Gemm(), there(x), there(gate_up), there(down), None, *biases, limit=limit))
        assert np.linalg.norm(got.astype(np.float32) - want) <= 1e-2 * np.linalg.norm(want)
        parts = here(swiglu.swiglu(Gemm(), there(x), there(gate_up), there(down), None, *biases, limit=limit,
                                   dtype=np.float32))
        assert parts.dtype == np.float32 and np.linalg.norm(parts - want) <= 1e-2 * np.linalg.norm(want)
    y, logit = some(rng, T, H), some(rng, T, 1)
    weighed = there(y)
    swiglu.weigh(weighed, there(logit))
    close(here(weighed), (1 / (1 + np.exp(-logit.astype(np.float32)))).astype(BF16) * y)


@pytest.mark.parametrize("rows, inner, width, bias", [(1, 64, 97, False), (16, 4096, 512, True), (700, 136, 264, True)])
@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_products(rows, inner, width, bias, dtype):
    from hpcmoe.device.gemm import Gemm
    rng, gemm = np.random.default_rng(rows), Gemm()
    bias &= dtype == np.uint16
    for _ in range(2):  # another weight, the same plan
        x, weight, b = some(rng, rows, inner), some(rng, width, inner), some(rng, width)
        got = here(gemm(there(x), there(weight), bias=there(b) if bias else None, dtype=dtype)).astype(np.float64)
        want = x.astype(np.float64) @ weight.astype(np.float64).T + (b.astype(np.float64) if bias else 0)
        assert np.linalg.norm(got - want) <= 4e-3 * np.linalg.norm(want)


@pytest.mark.parametrize("V", [5, 1023, 49152])
@pytest.mark.parametrize("temperature, top_p", [(0.0, 1.0), (0.7, 1.0), (1.3, 0.9), (0.5, 0.3)])
def test_next_tokens(V, temperature, top_p):
    from hpcmoe.device import choice
    rng, B = np.random.default_rng(V), 40
    logits = (3 * some(rng, B, V)).astype(BF16)
    target = np.where(rng.random(B) < 0.3, rng.integers(0, V, B), -1).astype(np.int32)
    u = rng.random(B)
    token, logprob = (here(part) for part in choice.next_token(there(logits), there(target), there(u), temperature,
                                                               top_p))
    wide = logits.astype(np.float32)
    want = cpu_choice.sample(wide, temperature, top_p, u) if temperature else cpu_choice.greedy(wide)
    want = np.where(target >= 0, target, want)
    assert np.array_equal(token, want)
    assert np.allclose(logprob, cpu_choice.logprobs(wide, want), atol=2e-5)


@pytest.mark.parametrize("E, K, R, more", [(8, 2, 8, 5), (16, 4, 24, 8), (3, 3, 9, 12), (256, 8, 320, 64)])
@pytest.mark.parametrize("T", [0, 1, 64, 500])
def test_replicas_get_the_rows_that_numpy_gives_them(E, K, R, more, T):
    from dataclasses import replace

    import cupy

    from hpcmoe.device import gate
    rng = np.random.default_rng(E + T)
    held = {(e * R // E, e) for e in range(E)}
    while len(held) < E + more:
        held.add((int(rng.integers(R)), int(rng.integers(E))))
    placement = Placement(R, *np.array(sorted(held), np.int32).T)
    expert = np.argsort(rng.random((T, E)), axis=1)[:, :K].astype(np.int32)
    expert[: T // 2] = np.arange(K)
    to = replicas.near(placement, [r // 4 for r in range(R)], R // 2)
    want = replicas.spread(expert, to, replicas.even(np.bincount(expert.ravel(), minlength=E), placement))
    at = gate.make_map(placement, to.slot)
    route = gate.make_route(T, K, R)
    chosen = replace(gate.make_route(T, K, E), weight=route.weight)
    chosen.expert[...] = there(expert)
    gate.order(chosen, at.replicas.itself, T, E)
    gate.spread(chosen, at.replicas, T, route)
    gate.order(route, at.rank, T, R)
    cupy.cuda.get_current_stream().synchronize()
    assert np.array_equal(here(route.expert), want)
    plan = plan_send(want, placement, trailer_width(placement.most, K))
    assert np.array_equal(route.counts, plan.counts)
    begins = np.cumsum(plan.home_counts) - plan.home_counts
    assert np.array_equal(here(route.home), plan.home - begins[placement.rank[want]])
