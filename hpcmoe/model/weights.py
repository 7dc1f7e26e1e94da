"""The weights that one rank holds: the shared parts, and its own experts."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from hpcmoe import array, spec
from hpcmoe.files import pieces
from hpcmoe.files.model import Source
from hpcmoe.spec import ModelSpec, Tensor

Held = Callable[[int], list[int]]
"""layer -> the experts that this rank holds there, in the order of its slots."""

Keep = Callable[[Tensor, np.ndarray], Any]
"""(tensor, its values in float32) -> where and how they are kept; on a GPU: `device.weights.keep`"""

Found = Mapping[tuple[str, int | None], Any]
"""(kind, expert) -> a tensor of one layer"""
Cut = Callable[[Tensor], Tensor | None]
"""What a rank keeps of a tensor, a `Piece` of it, or all; None for nothing"""

Bring = Callable[[Tensor], Any]
"""A matrix -> the same that `Keep` makes of it, by a shorter way than through float32 on the host"""


@dataclass(frozen=True)
class Swiglu:
    """One feed-forward block."""

    gate_up: np.ndarray
    """`[2 I, H]`, gate rows first"""
    down: np.ndarray
    """`[H, I]`"""
    gate_up_bias: np.ndarray | None = None
    """`[2 I]`"""
    down_bias: np.ndarray | None = None
    """`[H]`"""


@dataclass(frozen=True)
class Attention:
    """One attention block; what its family does not have is None."""

    norm: np.ndarray
    """`[H]`: of what comes in"""
    qkv: np.ndarray
    """`[(heads + 2 kv_heads) * head_dim, H]`"""
    bias: np.ndarray | None
    """`[(heads + 2 kv_heads) * head_dim]`"""
    q_norm: np.ndarray | None
    """`[head_dim]` or `[heads * head_dim]`"""
    k_norm: np.ndarray | None
    """`[head_dim]` or `[kv_heads * head_dim]`"""
    o: np.ndarray
    """`[H, heads * head_dim]`"""
    o_bias: np.ndarray | None = None
    """`[H]`"""
    sinks: np.ndarray | None = None
    """`[heads]`"""


@dataclass(frozen=True)
class LatentAttention:
    """One attention block with a latent (`spec.Latent`); dn is `head_dim`, dr and dv what turns and a head's value."""

    norm: np.ndarray
    """`[H]`: of what comes in"""
    q_a: np.ndarray | None
    """`[query_rank, H]`, where queries have a latent of their own"""
    q_a_norm: np.ndarray | None
    """`[query_rank]`"""
    q: np.ndarray
    """`[heads * (dn + dr), query_rank or H]`"""
    kv_a: np.ndarray
    """`[rank + dr, H]`"""
    kv_a_norm: np.ndarray
    """`[rank]`"""
    kv_b: np.ndarray
    """`[heads * (dn + dv), rank]`"""
    o: np.ndarray
    """`[H, heads * dv]`"""
    o_bias: np.ndarray | None = None
    """`[H]`"""


@dataclass(frozen=True)
class Gate:
    """The gate of a layer."""

    weight: np.ndarray
    """`[E, H]`"""
    bias: np.ndarray | None
    """`[E]`: counts in the choice only"""
    logit_bias: np.ndarray | None = None
    """`[E]`: of the logits themselves"""


@dataclass(frozen=True)
class Shared:
    """The expert that sees every token."""

    swiglu: Swiglu
    gate: np.ndarray | None
    """`[1, H]`"""


@dataclass(frozen=True)
class Layer:
    """One layer on one rank. All arrays are float32 with values of the compute dtype."""

    attention: Attention | LatentAttention
    norm: np.ndarray
    """`[H]`: of what the feed-forward block sees"""
    dense: Swiglu | None
    """or else gate, shared and experts"""
    gate: Gate | None
    shared: Shared | None
    experts: tuple[Swiglu, ...]
    """one for each slot of this rank: the rank's shard, where experts are cut"""


@dataclass(frozen=True)
class Weights:
    """A model on one rank."""

    embedding: np.ndarray
    """`[V, H]`"""
    layers: tuple[Layer, ...]
    norm: np.ndarray
    """`[H]`"""
    head: np.ndarray
    """`[V, H]`; the embedding itself where the head is tied"""


def whole(tensor: Tensor) -> Tensor:
    """The `Cut` of a rank that keeps all."""
    return tensor


def as_it_is(tensor: Tensor, values: np.ndarray) -> np.ndarray:
    """The `Keep` of a CPU."""
    return values


def load(source: Source, held: Held, dtype: np.dtype, keep: Keep = as_it_is,
         bring: Bring | None = None, *, cut: Cut = whole) -> Weights:
    """Reads what this rank holds, block by block, rounded to `dtype`; each tensor is kept as `keep` says. Local.

    Where there is `bring`, matrices come by it. Of each tensor the rank keeps what `cut` leaves.

    Raises `InputError` where the source has values that are missing or not finite.
    """
    model, fill = source.spec, _filler(source, dtype, keep, bring, cut)
    outer = {t.name: fill(t) for t in spec.outer_tensors(model)}
    layers = tuple(_layer(model, n, held(n) if not model.is_dense(n) else [], fill) for n in range(model.layers))
    return Weights(outer["embedding"], layers, outer["norm"], outer.get("head", outer["embedding"]))


def take_over(weights: Weights, source: Source, more: Held, dtype: np.dtype, keep: Keep = as_it_is,
              bring: Bring | None = None) -> Weights:
    """`weights` with the experts `more` of each layer that has some, behind those that are there. As `load`."""
    fill = _filler(source, dtype, keep, bring, whole)
    return replace(weights, layers=tuple(
        layer if layer.dense else replace(layer, experts=layer.experts + _experts(source.spec, n, more(n), fill))
        for n, layer in enumerate(weights.layers)))


def experts(source: Source, layer: int, wanted: Sequence[int], dtype: np.dtype, keep: Keep = as_it_is,
            bring: Bring | None = None, *, cut: Cut = whole) -> tuple[Swiglu, ...]:
    """Some experts of a layer, in that order. As `load`."""
    return _experts(source.spec, layer, wanted, _filler(source, dtype, keep, bring, cut))


def changed(weights: Weights, layer: int, slots: Mapping[int, Swiglu]) -> Weights:
    """`weights` with other experts in some slots of a layer, from 0 on this rank."""
    before = weights.layers[layer]
    after = replace(before, experts=tuple(slots.get(n, expert) for n, expert in enumerate(before.experts)))
    return replace(weights, layers=(*weights.layers[:layer], after, *weights.layers[layer + 1:]))


def _experts(model: ModelSpec, layer: int, wanted: Sequence[int],
             fill: Callable[[Tensor], np.ndarray]) -> tuple[Swiglu, ...]:
    found = {(t.kind, t.expert): fill(t) for t in spec.layer_tensors(model, layer) if t.expert in wanted}
    return tuple(_swiglu(found, "experts", e) for e in wanted)


def _filler(source: Source, dtype: np.dtype, keep: Keep, bring: Bring | None,
            cut: Cut) -> Callable[[Tensor], Any]:
    def fill(tensor: Tensor) -> Any:
        mine = cut(tensor)
        if mine is None:
            return None
        return bring(mine) if bring and len(mine.shape) > 1 else keep(mine, _fill(source, mine, dtype))
    return fill


def _layer(model: ModelSpec, layer: int, held: list[int], fill: Callable[[Tensor], np.ndarray]) -> Layer:
    found = {(t.kind, t.expert): fill(t) for t in spec.layer_tensors(model, layer)
             if t.expert is None or t.expert in held}

    def some(kind: str) -> np.ndarray | None:
        return found.get((kind, None))

    attention, norm = _attention(model, found), found["ffn_norm", None]
    if model.is_dense(layer):
        return Layer(attention, norm, _swiglu(found, "dense"), None, None, ())
    shared = Shared(_swiglu(found, "shared"), some("shared_gate")) if model.moe and model.moe.shared_hidden else None
    return Layer(attention, norm, None, Gate(found["gate", None], some("gate_bias"), some("logit_bias")), shared,
                 tuple(_swiglu(found, "experts", e) for e in held))


def _attention(model: ModelSpec, found: Found) -> Attention | LatentAttention:
    def some(name: str) -> Any:
        return found.get((f"attention/{name}", None))
    norm = found["attention_norm", None]
    if model.attention.latent:
        return LatentAttention(norm, some("q_a"), some("q_a_norm"), some("q"), some("kv_a"), some("kv_a_norm"),
                               some("kv_b"), some("o"), some("o_bias"))
    return Attention(norm, some("qkv"), some("qkv_bias"), some("q_norm"), some("k_norm"), some("o"), some("o_bias"),
                     some("sinks"))


def _swiglu(found: Found, kind: str, expert: int | None = None) -> Swiglu:
    return Swiglu(found[f"{kind}/gate_up", expert], found[f"{kind}/down", expert],
                  found.get((f"{kind}/gate_up_bias", expert)), found.get((f"{kind}/down_bias", expert)))


def _fill(source: Source, tensor: Tensor, dtype: np.dtype) -> np.ndarray:
    out, half = np.empty(tensor.shape, np.float32), dtype == array.BFLOAT16 and not tensor.exact
    row = 0
    for block in pieces.blocks(source, tensor):
        out[row:row + len(block)] = array.widen(array.narrow(block)) if half else block
        row += len(block)
    return out


def size(model: ModelSpec, held: Held, taken: Callable[[Tensor], int], cut: Cut = whole) -> dict[str, int]:
    """Bytes of the weights of one rank, by part of the model; `taken` are those of one tensor. `cut` as in `load`."""
    parts: dict[str, int] = {}
    for layer in range(model.layers):
        mine = held(layer) if not model.is_dense(layer) else []
        for t in spec.layer_tensors(model, layer):
            if (t.expert is None or t.expert in mine) and (kept := cut(t)):
                parts[t.part] = parts.get(t.part, 0) + taken(kept)
    for t in spec.outer_tensors(model):
        parts[t.part] = parts.get(t.part, 0) + taken(t)
    return parts
