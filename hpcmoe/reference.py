"""The slow oracle: one process, NumPy, no cache, no MPI, one token and one head at a time.

Written to be read, and to be compared with: every fast path of the package is tested against it. It shares
no arithmetic with the package.
"""

from collections.abc import Callable

import ml_dtypes
import numpy as np

from hpcmoe.files.model import Source
from hpcmoe.spec import ModelSpec, Moe, tensors

Round = Callable[[np.ndarray], np.ndarray]


def read(source: Source) -> dict[str, np.ndarray]:
    """All tensors of a model, float64."""
    return {t.name: np.concatenate([b.astype(np.float64) for b in source.blocks(t)]) for t in tensors(source.spec)}


def rounding(dtype: str) -> Round:
    """Rounds an array to bfloat16, or leaves it; the rest of this file computes in float64."""
    if dtype == "float32":
        return lambda x: x
    return lambda x: np.asarray(x).astype(np.float32).astype(ml_dtypes.bfloat16).astype(np.float64)


def logits(model: ModelSpec, weights: dict[str, np.ndarray], tokens: np.ndarray,
           dtype: str = "float32") -> np.ndarray:
    """Logits after each of n tokens of one sequence, `[n, V]`."""
    r = rounding(dtype)
    w = {name: r(values) for name, values in weights.items()}
    x = w["embedding"][tokens]
    for n in range(model.layers):
        at = {name.split("/", 2)[2]: v for name, v in w.items() if name.startswith(f"layers/{n:03d}/")}
        x = r(x + attention(model, at, norm(x, at["attention_norm"], model.norm_eps, r), r))
        y = norm(x, at["ffn_norm"], model.norm_eps, r)
        x = r(x + (swiglu(y, at["dense/gate_up"], at["dense/down"], r) if model.is_dense(n)
                   else moe(model, at, y, r)))
    x = norm(x, w["norm"], model.norm_eps, r)
    return r(x @ w["embedding" if model.tied_head else "head"].T)


def norm(x: np.ndarray, weight: np.ndarray, eps: float, r: Round) -> np.ndarray:
    """RMS norm of each row."""
    return np.array([r(weight * r(row / np.sqrt(np.mean(row * row) + eps))) for row in x]).reshape(x.shape)


def rope(head: np.ndarray, position: int, theta: float, r: Round) -> np.ndarray:
    """One head of one token, turned by its position."""
    half = len(head) // 2
    out = np.empty_like(head)
    for i in range(half):
        angle = np.float64(np.float32(position * np.float32(1 / theta ** np.float32(2 * i / len(head)))))
        c, s = r(np.cos(angle)), r(np.sin(angle))
        out[i] = r(r(head[i] * c) - r(head[i + half] * s))
        out[i + half] = r(r(head[i + half] * c) + r(head[i] * s))
    return out


def attention(model: ModelSpec, at: dict[str, np.ndarray], x: np.ndarray, r: Round) -> np.ndarray:
    """The attention block of rows x `[n, H]`, without the residual."""
    a, n = model.attention, len(x)
    both = r(x @ at["attention/qkv"].T + at.get("attention/qkv_bias", 0))
    q, k, v = both[:, :a.query_width], both[:, a.query_width:-a.kv_width], both[:, -a.kv_width:]
    if a.qk_norm == "full":
        q, k = norm(q, at["attention/q_norm"], model.norm_eps, r), norm(k, at["attention/k_norm"], model.norm_eps, r)
    if a.qk_norm == "head":
        q, k = (norm(part.reshape(-1, a.head_dim), at[f"attention/{name}_norm"], model.norm_eps, r)
                for part, name in ((q, "q"), (k, "k")))
    bound = a.clip or np.inf
    q, k, v = (np.clip(part.reshape(n, -1, a.head_dim), -bound, bound) for part in (q, k, v))
    q, k = (np.array([[rope(h, t, a.rope_theta, r) for h in part[t]] for t in range(n)]) for part in (q, k))
    mixed = np.zeros((n, a.heads, a.head_dim))
    for h in range(a.heads):
        kv = h // (a.heads // a.kv_heads)
        for t in range(n):
            first = max(0, t - a.window + 1) if a.window else 0
            scores = r(r(k[first:t + 1, kv] @ q[t, h]) * a.head_dim ** -0.5)
            mixed[t, h] = r(r(softmax(scores)) @ v[first:t + 1, kv])
    return r(mixed.reshape(n, -1) @ at["attention/o"].T)


def swiglu(x: np.ndarray, gate_up: np.ndarray, down: np.ndarray, r: Round) -> np.ndarray:
    """A feed-forward block of rows x `[n, H]`."""
    gate, up = np.split(r(x @ gate_up.T), 2, axis=1)
    return r(r(r(gate / (1 + np.exp(-gate))) * up) @ down.T)


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


def moe(model: ModelSpec, at: dict[str, np.ndarray], x: np.ndarray, r: Round) -> np.ndarray:
    """A mixture-of-experts block of rows x `[n, H]`."""
    assert model.moe is not None
    out = np.zeros_like(x)
    for t, row in enumerate(x):
        for e, weight in zip(*choose(model.moe, at["gate"] @ row, at.get("gate_bias", np.zeros(1)), r)):
            answer = swiglu(row[None], at[f"experts/{e:03d}/gate_up"], at[f"experts/{e:03d}/down"], r)[0]
            out[t] += r(weight * answer) if model.moe.round_weights else weight * answer
    out = r(out)
    if "shared/down" in at:
        shared = swiglu(x, at["shared/gate_up"], at["shared/down"], r)
        if "shared_gate" in at:
            shared = r(r(1 / (1 + np.exp(-r(x @ at["shared_gate"].T)))) * shared)
        out = r(out + shared)
    return out


def generate(model: ModelSpec, weights: dict[str, np.ndarray], prompt: np.ndarray, new: int,
             dtype: str = "float32") -> list[int]:
    """`new` greedy tokens after `prompt`; stops behind an end token."""
    tokens = [int(t) for t in prompt]
    for _ in range(new):
        tokens.append(int(logits(model, weights, np.array(tokens), dtype)[-1].argmax()))
        if tokens[-1] in model.eos:
            break
    return tokens[len(prompt):]
