"""The kernels of attention against their twins in NumPy, over random shapes."""

from dataclasses import replace

import numpy as np
import pytest
from bits import BF16, close, here, some, there
from models import batch

from hpcmoe.kernels import attention as cpu_attention
from hpcmoe.kernels import linear as cpu_linear
from hpcmoe.kernels import rope as cpu_rope
from hpcmoe.kernels import rows
from hpcmoe.kernels.norm import rms_norm
from hpcmoe.model import latent as cpu_latent
from hpcmoe.spec import Attention, Latent, ModelSpec, Moe, Yarn

pytestmark = pytest.mark.gpu


def sequences(rng, slots, length):
    """Some spans of tokens (slot, cached, rows) whose sequences fit a cache."""
    return [(int(slot), int(rng.integers(0, length // 2)), int(rng.integers(1, length // 2)))
            for slot in rng.permutation(slots)[:3]]


def flat(spans):
    """Slot and position of each token."""
    return (np.repeat([s for s, *_ in spans], [n for *_, n in spans]).astype(np.int32),
            np.concatenate([np.arange(first, first + n) for _, first, n in spans]).astype(np.int32))


def attention_case(seed, d, length):
    """A model of one attention, and random spans, projections and cache."""
    from hpcmoe.device.scratch import whole_blocks
    rng = np.random.default_rng(seed)
    kv, group = int(rng.integers(1, 4)), int(rng.integers(1, 4))
    clip, window, slots = 1.25 * (seed % 3 == 0), 5 * (seed % 4 == 1) + 300 * (seed % 4 == 2), 5
    a = Attention(kv * group, kv, d, window=window, clip=clip)
    if seed % 2 == 0:
        a = replace(a, sinks=True, score_factor=1.2, yarn=Yarn(4, 32, magnitude=1.1), rotary_dim=d // 4 * 2,
                    window_layers=(1,) if window else ())
    model = ModelSpec("one", 2, 32, 97, length, a, None, Moe(2, 1, 8))
    spans = sequences(rng, slots, length)
    past = some(rng, 2, 2, slots, kv, whole_blocks(length), d)  # k and v
    qkv = some(rng, sum(n for *_, n in spans), (kv * group + 2 * kv) * d)
    sinks = rng.standard_normal(kv * group).astype(BF16).astype(np.float32) if a.sinks else None
    return model, spans, past, qkv, slots, sinks


def by_numpy(model, spans, past, qkv, sinks):
    """Turned queries `[T, heads, d]`, and what they see, in bfloat16 and in float32; `past` gets their keys."""
    a, (_, position) = model.attention, flat(spans)
    if a.clip:
        bound = np.array(a.clip, BF16)
        qkv = np.minimum(np.maximum(qkv, -bound), bound)
    angles = cpu_rope.tables(position, a, BF16)
    q, k, v = (part.reshape(len(qkv), -1, a.head_dim)
               for part in np.split(qkv, [a.query_width, a.query_width + a.kv_width], axis=1))
    q, k = cpu_rope.rotate(q, *angles), cpu_rope.rotate(k, *angles)
    first, seen, wide = 0, [], []
    for s, cached, n in spans:
        part, end = slice(first, first + n), cached + n
        past[0, 1, s, :, cached:end], past[1, 1, s, :, cached:end] = (some[part].swapaxes(0, 1) for some in (k, v))
        found = q[part], past[0, 1, s, :, :end], past[1, 1, s, :, :end]
        more = a.window_in(1), a.scale, sinks
        seen.append(cpu_attention.attend(*found, *more))
        wide.append(cpu_attention.attend(*(x.astype(np.float32) for x in found), *more))
        first += n
    return q, np.concatenate(seen), np.concatenate(wide)


@pytest.mark.parametrize(("seed", "d", "length"), [
    *((seed, 4 * (1 + 13 * seed % 64), 90) for seed in range(6)),
    *((seed, (8, 64, 128, 80, 256, 128)[seed - 6], 700) for seed in range(6, 12)), (12, 64, 700)])
def test_attention_through_the_cache(seed, d, length):
    import cupy

    from hpcmoe.device import attention
    from hpcmoe.device.attending import SHORT, Attending, look
    from hpcmoe.device.cuda import Mirror
    from hpcmoe.device.scratch import BLOCK
    model, spans, past, qkv, slots, sinks = attention_case(seed, d, length)
    cache, width = attention.KvCache(model, slots, length), model.attention.query_width
    cache.k[...], cache.v[...] = there(past[0]), there(past[1])
    slot, position = map(there, flat(spans))
    T, held = len(qkv), None if sinks is None else there(sinks)
    q, exact = there(some(np.random.default_rng(0), T + BLOCK, width)), there(np.zeros((T, width), BF16))
    attention.extend(model, there(qkv), cache, 1, slot, position, q)
    attention.attend(model, q[:T], cache, 1, slot, position, exact, held)
    turned, want, wide = by_numpy(model, spans, past, qkv, sinks)
    assert np.array_equal(here(q)[:T].reshape(turned.shape), turned)
    assert np.array_equal(here(cache.k), past[0]) and np.array_equal(here(cache.v), past[1])
    assert np.abs(here(exact).astype(np.float32) - want.astype(np.float32)).max() < 0.02
    assert np.mean(here(exact) == want) > 0.99

    if d % 8 == 0:
        one_by_one, together = there(np.zeros((T, width), BF16)), there(np.zeros((T + BLOCK, width), BF16))
        attention.decode(model, q[:T], cache, 1, slot, position, one_by_one, None, held)
        assert np.abs(here(one_by_one).astype(np.float32) - wide).max() < 0.01
        attending = Attending(model, cache, cupy.cuda.Stream.null)
        sight = look(batch(*((s, cached, range(n)) for s, cached, n in spans)), attending.by_cudnn, Mirror(np.int32),
                     Mirror(np.int32))
        attending(q, 1, slot, position, sight, together, held)
        assert attending.by_cudnn or d == 256
        assert not attending.by_cudnn or len(sight.spans) == sum(n > SHORT for *_, n in spans)
        assert np.abs(here(together)[:T].astype(np.float32) - wide).max() < 0.02


@pytest.mark.parametrize("alone", [False, True], ids=["", "alone"])
@pytest.mark.parametrize(("T", "heads", "inner", "width"), [(1, 3, 10, 12), (5, 16, 128, 512), (300, 4, 512, 128),
                                                            (40, 2, 14, 6)])
def test_products_head_by_head(T, heads, inner, width, alone):
    import cupy

    from hpcmoe.device.gemm import Gemm
    from hpcmoe.device.heads import Heads
    rng, multiply = np.random.default_rng(T), Heads(cupy.cuda.Stream.null, Gemm().workspace)
    x, weight = some(rng, T, heads, inner + 6), some(rng, heads, width + 4, inner)
    weight = (weight.astype(np.float32) * inner ** -0.5).astype(BF16)
    rows.compute_alone(alone)
    try:
        for turned in (False, True):
            held = there(weight.swapaxes(1, 2).copy()).swapaxes(1, 2) if turned else there(weight)
            out = cupy.full((heads, T + 2, width + 8), 7, np.uint16)
            multiply(there(x)[..., 6:], held[:, :width], out[:, :T, 8:].transpose(1, 0, 2))
            want = cpu_linear.by_head(x[..., 6:].astype(np.float32), weight[:, :width].astype(np.float32))
            got = here(out)
            assert np.abs(got[:, :T, 8:].swapaxes(0, 1).astype(np.float32) - want).max() < 0.05
            assert (got[:, T:].view(np.uint16) == 7).all() and (got[:, :, :8].view(np.uint16) == 7).all()
    finally:
        rows.compute_alone(False)


LATENTS = {"tiny": (Attention(4, 4, 10, latent=Latent(12, 6, 8)), 60), "odd": (
    Attention(3, 3, 24, latent=Latent(40, 8, 16), yarn=Yarn(4, 32, magnitude=1.1), score_factor=1.2), 200),
    "widest": (Attention(2, 2, 16, latent=Latent(704, 64, 24)), 90),
    "16 heads": (Attention(16, 16, 128, latent=Latent(512, 64, 128)), 700),
    "128 heads": (Attention(128, 128, 128, latent=Latent(512, 64, 128)), 300),
    "5 heads": (Attention(5, 5, 8, latent=Latent(512, 64, 8)), 1500),
    "70 heads": (Attention(70, 70, 64, latent=Latent(512, 64, 32), score_factor=1.5), 400)}


def latent_case(name):
    """A model, spans, a past, and what comes in: queries before they are turned, what is kept before its norm."""
    a, length = LATENTS[name]
    rng, slots, c = np.random.default_rng(len(name)), 5, a.latent
    model, spans = ModelSpec("one", 2, 32, 97, length, a, None, Moe(2, 1, 8)), sequences(rng, slots, length)
    spans += [(s, length // 3, 1) for s in range(slots) if s not in {s for s, *_ in spans}]
    T = sum(n for *_, n in spans)
    q, both = some(rng, T, a.query_width), some(rng, T, c.rank + c.rotary_dim)
    weight = rng.standard_normal(c.rank).astype(np.float32)
    kv_b = rng.standard_normal((a.heads, a.head_dim + c.value_dim, c.rank))
    return model, spans, q, both, weight, (kv_b.reshape(-1, c.rank) * c.rank ** -0.5).astype(BF16), rng


@pytest.mark.parametrize("name", LATENTS)
def test_attention_with_a_latent(name):
    import cupy

    from hpcmoe.device import latent
    from hpcmoe.device.attending import look
    from hpcmoe.device.cuda import Mirror, is_hopper
    from hpcmoe.device.gemm import Gemm
    from hpcmoe.device.heads import Heads
    from hpcmoe.device.scratch import BLOCK
    model, spans, q, both, weight, kv_b, rng = latent_case(name)
    a, c, (slot, position) = model.attention, model.attention.latent, flat(spans)
    cache, T = latent.LatentCache(model, 5, model.context), len(q)
    past = some(rng, *cache.kept.shape)
    cache.kept[...] = there(past)
    held = there(np.concatenate([q, some(rng, BLOCK, a.query_width)]))
    latent.keep(model, held, there(both), there(weight), cache, 1, there(slot), there(position))
    angles = cpu_rope.tables(position, a, BF16)
    heads = q.reshape(T, a.heads, -1)
    plain, turned = heads[..., :a.head_dim], cpu_rope.rotate(heads[..., a.head_dim:], *angles)
    assert np.array_equal(here(held)[:T].reshape(heads.shape), np.concatenate([plain, turned], axis=2))
    key = cpu_rope.rotate(both[:, None, c.rank:], *angles)[:, 0]
    kept = here(cache.kept)
    close(kept[1, slot, position, :c.rank], rms_norm(both[:, :c.rank], weight, c.norm_eps))
    assert np.array_equal(kept[1, slot, position, c.rank:], key) and np.array_equal(kept[0], past[0])

    wide, exact, first = [], [], 0
    for s, cached, n in spans:
        part, known = slice(first, first + n), kept[1, s, :cached + n]
        first += n
        given = plain[part], turned[part], known
        exact.append(cpu_latent.absorbed(a, c, kv_b.astype(np.float32), *given))
        wide.append(cpu_latent.absorbed(a, c, kv_b.astype(np.float32), *(x.astype(np.float32) for x in given)))
    wide, exact = np.concatenate(wide), np.concatenate(exact).astype(np.float32)
    attending = latent.LatentAttending(model, cache, cupy.cuda.Stream.null,
                                       Heads(cupy.cuda.Stream.null, Gemm().workspace))
    assert (attending._absorbed is not None) == (is_hopper() and c.rank == 512)
    found = batch(*((s, cached, range(n)) for s, cached, n in spans))
    for long in {False, attending.by_cudnn}:
        sight = look(found, long, Mirror(np.int32), Mirror(np.int32))
        out = there(np.zeros((T + BLOCK, a.mixed_width), BF16))
        attending(held, there(kv_b), 1, there(slot), there(position), sight, out)
        off = here(out)[:T].astype(np.float32) - wide
        assert np.linalg.norm(off) <= 1e-2 * np.linalg.norm(wide), (long, np.linalg.norm(off) / np.linalg.norm(wide))
        assert np.abs(off).max() <= 0.05 * np.abs(wide).max(), long
    print(name, "by cuDNN" if attending.by_cudnn else "without cuDNN")
    rows.compute_alone(True)
    try:
        sight = look(found, True, Mirror(np.int32), Mirror(np.int32))
        out = there(np.zeros((T, a.mixed_width), BF16))
        attending(held, there(kv_b), 1, there(slot), there(position), sight, out)
    finally:
        rows.compute_alone(False)
    assert np.linalg.norm(here(out).astype(np.float32) - exact) <= 4e-3 * np.linalg.norm(exact)


@pytest.mark.parametrize("heads", [16, 128])
@pytest.mark.parametrize("lengths", [[1], [64], [65], [5000], [1, 900, 64, 65, 3000, 2], [100] * 300,
                                     [7] * 40 + [4000]], ids=len)
def test_absorbed_sums_however_they_are_cut(heads, lengths):
    """One token a sequence, against plain sums in float32 on the GPU; where scores are far apart, too."""
    import cupy

    from hpcmoe.device import latent
    from hpcmoe.device.cuda import is_hopper
    if not is_hopper():
        pytest.skip("no Hopper")
    a = Attention(heads, heads, 128, latent=Latent(512, 64, 128))
    n, room, rng = len(lengths), -(-max(lengths) // 128) * 128, cupy.random.default_rng(heads + len(lengths))
    def random(*shape, by=1.0):
        bits = (rng.standard_normal(shape, dtype=np.float32) * by).view(np.uint32)
        return (bits + 0x7fff + (bits >> 16 & 1) >> 16).astype(np.uint16)
    def wide(x):
        return (x.astype(np.uint32) << 16).view(np.float32)
    absorbed = latent.Absorbed(a, a.latent)
    for by in (0.3, 8.0):
        q, turned, kept = random(n, heads, 512, by=by), random(n, heads, 64, by=by), random(n, room, 576)
        out = cupy.full((n, heads, 512), 0x7fc0, np.uint16)
        slot = cupy.asarray(np.random.default_rng(0).permutation(n).astype(np.int32))
        position = cupy.asarray(np.array(lengths, np.int32) - 1)
        for _ in range(2):
            absorbed(q, turned, kept, slot, position, out)
        want = cupy.empty((n, heads, 512), np.float32)
        for t, length in enumerate(lengths):
            known = wide(kept[int(slot[t]), :length])
            scores = cupy.concatenate([wide(q[t]), wide(turned[t])], axis=1) @ known.T * np.float32(a.scale)
            share = cupy.exp(scores - scores.max(axis=1, keepdims=True))
            want[t] = share / share.sum(axis=1, keepdims=True) @ known[:, :512]
        off = cupy.linalg.norm((wide(out) - want).ravel()) / cupy.linalg.norm(want.ravel())
        assert float(off) <= 6e-3, (by, float(off))
