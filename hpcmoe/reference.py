"""The slow oracle: one process, NumPy, no cache, no MPI, one token and one head at a time.

Written to be read, and to be compared with: every fast path of the package is tested against it. It shares
no arithmetic with the package.
"""

from collections.abc import Callable

import ml_dtypes
import numpy as np

from hpcmoe.files.model import Source
from hpcmoe.spec import ModelSpec, tensors

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
    both = r(x @ at["attention/qkv"].T).reshape(n, a.heads + 2 * a.kv_heads, a.head_dim)
    turned = np.array([[rope(h, t, a.rope_theta, r) for h in both[t, :a.heads + a.kv_heads]] for t in range(n)])
    mixed = np.zeros((n, a.heads, a.head_dim))
    for h in range(a.heads):
        kv = h // (a.heads // a.kv_heads)
        k, v = turned[:, a.heads + kv], both[:, a.heads + a.kv_heads + kv]
        for t in range(n):
            first = max(0, t - a.window + 1) if a.window else 0
            scores = r(r(k[first:t + 1] @ turned[t, h]) * a.head_dim ** -0.5)
            p = np.exp(scores - scores.max())
            mixed[t, h] = r(r(p / p.sum()) @ v[first:t + 1])
    return r(mixed.reshape(n, -1) @ at["attention/o"].T)


def swiglu(x: np.ndarray, gate_up: np.ndarray, down: np.ndarray, r: Round) -> np.ndarray:
    """A feed-forward block of rows x `[n, H]`."""
    gate, up = np.split(r(x @ gate_up.T), 2, axis=1)
    return r(r(r(gate / (1 + np.exp(-gate))) * up) @ down.T)


def choose(model: ModelSpec, gate: np.ndarray, row: np.ndarray, r: Round) -> tuple[list[int], list[float]]:
    """The experts of one token, best first, and their weights."""
    m = model.moe
    assert m is not None
    scores = gate @ row
    if m.round_logits:
        scores = r(scores)
    p = np.exp(scores - scores.max())
    p = p / p.sum()
    chosen = sorted(range(m.experts), key=lambda e: (-p[e], e))[:m.top_k]
    total = sum(p[e] for e in chosen) if m.renormalise else 1.0
    return chosen, [p[e] / total * m.scale for e in chosen]


def moe(model: ModelSpec, at: dict[str, np.ndarray], x: np.ndarray, r: Round) -> np.ndarray:
    """A mixture-of-experts block of rows x `[n, H]`."""
    out = np.zeros_like(x)
    for t, row in enumerate(x):
        for e, weight in zip(*choose(model, at["gate"], row, r)):
            answer = swiglu(row[None], at[f"experts/{e:03d}/gate_up"], at[f"experts/{e:03d}/down"], r)
            out[t] += weight * answer[0]
    out = r(out)
    if "shared/down" in at:
        out = r(out + swiglu(x, at["shared/gate_up"], at["shared/down"], r))
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
