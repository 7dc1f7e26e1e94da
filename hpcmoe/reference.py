"""The slow oracle: one process, NumPy, no cache, no MPI, one token and one head at a time.

Written to be read, and to be compared with: every fast path of the package is tested against it. It shares
no arithmetic with the package.
"""

from collections.abc import Callable
from functools import lru_cache, partial

import ml_dtypes
import numpy as np

from hpcmoe.files.model import Source
from hpcmoe.spec import Attention, ModelSpec, Moe, tensors

Round = Callable[[np.ndarray], np.ndarray]
Read = Callable[[str], np.ndarray]
"""A tensor's name -> its values, float64"""


def reader(source: Source, dtype: str = "float32") -> Read:
    """Reads tensors of a model by name, float64 with values of `dtype`; remembers those of a few layers."""
    known, r = {t.name: t for t in tensors(source.spec)}, rounding(dtype)

    @lru_cache(maxsize=128)
    def read(name: str) -> np.ndarray:
        return r(np.concatenate([block.astype(np.float64) for block in source.blocks(known[name])]))
    return read


def rounding(dtype: str) -> Round:
    """Rounds an array to bfloat16, or leaves it; the rest of this file computes in float64."""
    if dtype == "float32":
        return lambda x: x
    return lambda x: np.asarray(x).astype(np.float32).astype(ml_dtypes.bfloat16).astype(np.float64)


def logits(model: ModelSpec, read: Read, tokens: np.ndarray, dtype: str = "float32") -> np.ndarray:
    """Logits after each of n tokens of one sequence, `[n, V]`."""
    r = rounding(dtype)
    x = read("embedding")[tokens]
    for n in range(model.layers):
        x = layer(model, n, partial(_within, read, n), x, r)
    x = norm(x, read("norm"), model.norm_eps, r, model.norm_weight_first)
    return r(x @ read("embedding" if model.tied_head else "head").T)


def _within(read: Read, n: int, name: str) -> np.ndarray:
    return read(f"layers/{n:03d}/{name}")


def layer(model: ModelSpec, n: int, at: Read, x: np.ndarray, r: Round) -> np.ndarray:
    """Layer n of rows x `[n, H]`; `at` reads its tensors."""
    normed = partial(norm, eps=model.norm_eps, r=r, weight_first=model.norm_weight_first)
    mix = latent_attention if model.attention.latent else attention
    mixed = mix(model, n, at, normed(x, at("attention_norm")), r)
    x = r(x + r(mixed @ at("attention/o").T + (at("attention/o_bias") if model.attention.output_bias else 0)))
    y = normed(x, at("ffn_norm"))
    if model.is_dense(n):
        return r(x + swiglu(y, at("dense/gate_up"), at("dense/down"), r))
    return r(x + moe(model, at, y, r))


def norm(x: np.ndarray, weight: np.ndarray, eps: float, r: Round, weight_first: bool = False) -> np.ndarray:
    """RMS norm of each row."""
    first = (lambda row: row) if weight_first else r
    return np.array([r(weight * first(row / np.sqrt(np.mean(row * row) + eps))) for row in x]).reshape(x.shape)


def frequency(a: Attention, i: int) -> np.float32:
    """Radians per position of pair i."""
    d, theta = a.turning, a.rope_theta
    plain = np.float32(1 / theta ** np.float32(2 * i / d))
    if not a.yarn:
        return plain
    first, last = (d * np.log(a.yarn.context / (2 * np.pi * turns)) / (2 * np.log(theta))
                   for turns in (a.yarn.fast, a.yarn.slow))
    if a.yarn.whole:
        first, last = np.floor(first), np.ceil(last)
    first, last = max(first, 0), min(last, d - 1)
    divided = min(max((i - first) / (last - first or 0.001), 0), 1)
    return np.float32(divided * plain / a.yarn.factor + (1 - divided) * plain)


def rope(head: np.ndarray, position: int, a: Attention, r: Round) -> np.ndarray:
    """One head of one token, its first values turned by its position."""
    half = a.turning // 2
    out = head.copy()
    for i in range(half):
        angle = np.float64(np.float32(position * frequency(a, i)))
        c, s = (r(turn * (a.yarn.magnitude if a.yarn else 1)) for turn in (np.cos(angle), np.sin(angle)))
        out[i] = r(r(head[i] * c) - r(head[i + half] * s))
        out[i + half] = r(r(head[i + half] * c) + r(head[i] * s))
    return out


def attention(model: ModelSpec, layer: int, at: Read, x: np.ndarray, r: Round) -> np.ndarray:
    """What the heads answer to rows x `[n, H]`: `[n, heads * head_dim]`."""
    a, n = model.attention, len(x)
    both = r(x @ at("attention/qkv").T + (at("attention/qkv_bias") if a.bias else 0))
    q, k, v = both[:, :a.query_width], both[:, a.query_width:-a.kv_width], both[:, -a.kv_width:]
    if a.qk_norm == "full":
        q, k = norm(q, at("attention/q_norm"), model.norm_eps, r), norm(k, at("attention/k_norm"), model.norm_eps, r)
    if a.qk_norm == "head":
        q, k = (norm(part.reshape(-1, a.head_dim), at(f"attention/{name}_norm"), model.norm_eps, r)
                for part, name in ((q, "q"), (k, "k")))
    bound = a.clip or np.inf
    q, k, v = (np.clip(part.reshape(n, -1, a.head_dim), -bound, bound) for part in (q, k, v))
    q, k = (np.array([[rope(h, t, a, r) for h in part[t]] for t in range(n)]) for part in (q, k))
    mixed = np.zeros((n, a.heads, a.head_dim))
    for h in range(a.heads):
        kv, sink = h // (a.heads // a.kv_heads), at("attention/sinks")[h] if a.sinks else None
        for t in range(n):
            first = max(0, t - a.window_in(layer) + 1) if a.window_in(layer) else 0
            mixed[t, h] = look(q[t, h], k[first:t + 1, kv], v[first:t + 1, kv], a.scale, sink, r)
    return mixed.reshape(n, -1)


def look(q: np.ndarray, k: np.ndarray, v: np.ndarray, scale: float, sink: float | None, r: Round) -> np.ndarray:
    """What one query finds among m keys and values."""
    scores = r(r(k @ q) * scale)
    if sink is None:
        return r(r(softmax(scores)) @ v)
    beside = np.append(scores, sink)
    return r(r(softmax(r(beside - beside.max())))[:-1] @ v)


def latent_attention(model: ModelSpec, layer: int, at: Read, x: np.ndarray, r: Round) -> np.ndarray:
    """The same with a latent, in its plain form."""
    a, c, n = model.attention, model.attention.latent, len(x)
    assert c is not None
    inner = norm(r(x @ at("attention/q_a").T), at("attention/q_a_norm"), c.norm_eps, r) if c.query_rank else x
    q = r(inner @ at("attention/q").T).reshape(n, a.heads, -1)
    both = r(x @ at("attention/kv_a").T)
    vector = norm(both[:, :c.rank], at("attention/kv_a_norm"), c.norm_eps, r)
    k, v = np.split(r(vector @ at("attention/kv_b").T).reshape(n, a.heads, -1), [a.head_dim], axis=2)
    mixed = np.zeros((n, a.heads, c.value_dim))
    shared = np.array([rope(both[t, c.rank:], t, a, r) for t in range(n)])
    for h in range(a.heads):
        keys = np.concatenate([k[:, h], shared], axis=1)
        for t in range(n):
            query = np.concatenate([q[t, h, :a.head_dim], rope(q[t, h, a.head_dim:], t, a, r)])
            mixed[t, h] = look(query, keys[:t + 1], v[:t + 1, h], a.scale, None, r)
    return mixed.reshape(n, -1)


def swiglu(x: np.ndarray, gate_up: np.ndarray, down: np.ndarray, r: Round) -> np.ndarray:
    """A feed-forward block of rows x `[n, H]`."""
    gate, up = np.split(r(x @ gate_up.T), 2, axis=1)
    return r(r(r(gate / (1 + np.exp(-gate))) * up) @ down.T)


def expert(model: ModelSpec, at: Read, e: int, x: np.ndarray, r: Round) -> np.ndarray:
    """Expert e's answers to rows x `[n, H]`."""
    m, own = model.moe, partial(_within_expert, at, e)
    assert m is not None
    if not (m.limit or m.expert_bias):
        return swiglu(x, own("gate_up"), own("down"), r)
    more, last = (own("gate_up_bias"), own("down_bias")) if m.expert_bias else (0, 0)
    gate, up = np.split(r(r(x @ own("gate_up").T) + more), 2, axis=1)
    if not m.limit:
        return r(r(r(r(gate / (1 + np.exp(-gate))) * up) @ own("down").T) + last)
    gate, up = np.minimum(gate, m.limit), np.clip(up, -m.limit, m.limit)
    gate = r(gate * r(1 / (1 + np.exp(-r(gate * 1.702)))))
    return r(r(r(r(up + 1) * gate) @ own("down").T) + last)


def _within_expert(at: Read, e: int, name: str) -> np.ndarray:
    return at(f"experts/{e:03d}/{name}")


def softmax(x: np.ndarray) -> np.ndarray:
    """Of one vector."""
    p = np.exp(x - x.max())
    return p / p.sum()


def choose(m: Moe, logits: np.ndarray, bias: np.ndarray, r: Round) -> tuple[list[int], list[float]]:
    """The experts of one token, best first, and their weights."""
    logits = r(logits) if m.round_logits else logits
    sigmoid = 1 / (1 + np.exp(-logits))
    scores = {"softmax": softmax(logits), "sigmoid": sigmoid, "softmax_of_chosen": logits}[m.score]
    rank = scores + bias
    size = m.experts // m.groups
    members = {g: sorted(rank[g * size:(g + 1) * size])[::-1] for g in range(m.groups)}
    worth = {g: sum(best[:2] if m.group_score == "top2" else best[:1]) for g, best in members.items()}
    kept = sorted(members, key=lambda g: (-worth[g], g))[:m.groups_kept]
    chosen = sorted((e for e in range(m.experts) if e // size in kept), key=lambda e: (-rank[e], e))[:m.top_k]
    weights = np.array([scores[e] for e in chosen])
    if m.score == "softmax_of_chosen":
        weights = softmax(weights)
    elif m.renormalise:
        weights = weights / (weights.sum() + 1e-20)
    weights = weights * m.scale
    return chosen, list(r(weights) if m.round_weights else weights)


def moe(model: ModelSpec, at: Read, x: np.ndarray, r: Round) -> np.ndarray:
    """A mixture-of-experts block of rows x `[n, H]`."""
    m = model.moe
    assert m is not None
    bias = at("gate_bias") if m.selection_bias else np.zeros(1)
    out = np.zeros_like(x)
    for t, row in enumerate(x):
        for e, weight in zip(*choose(m, at("gate") @ row + (at("logit_bias") if m.logit_bias else 0), bias, r)):
            answer = expert(model, at, e, row[None], r)[0]
            out[t] += r(weight * answer) if m.round_weights else weight * answer
    out = r(out)
    if not m.shared_hidden:
        return out
    shared = swiglu(x, at("shared/gate_up"), at("shared/down"), r)
    if m.shared_gate:
        shared = r(r(1 / (1 + np.exp(-r(x @ at("shared_gate").T)))) * shared)
    return r(out + shared)


def generate(model: ModelSpec, read: Read, prompt: np.ndarray, new: int, dtype: str = "float32") -> list[int]:
    """`new` greedy tokens after `prompt`; stops behind an end token."""
    tokens = [int(t) for t in prompt]
    for _ in range(new):
        tokens.append(int(logits(model, read, np.array(tokens), dtype)[-1].argmax()))
        if tokens[-1] in model.eos:
            break
    return tokens[len(prompt):]
