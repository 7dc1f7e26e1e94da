"""The weights that one rank holds: the shared parts, and its own experts."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from hpcmoe import array, spec
from hpcmoe.files.model import Source
from hpcmoe.spec import ModelSpec, Tensor

Held = Callable[[int], list[int]]
"""layer -> the experts that this rank holds there, in the order of its slots."""


@dataclass(frozen=True)
class Swiglu:
    """One feed-forward block."""

    gate_up: np.ndarray
    """`[2 I, H]`, gate rows first"""
    down: np.ndarray
    """`[H, I]`"""


@dataclass(frozen=True)
class Layer:
    """One layer on one rank. All arrays are float32 with values of the compute dtype."""

    attention_norm: np.ndarray
    qkv: np.ndarray
    """`[(heads + 2 kv_heads) * head_dim, H]`"""
    o: np.ndarray
    """`[H, heads * head_dim]`"""
    ffn_norm: np.ndarray
    dense: Swiglu | None
    gate: np.ndarray | None
    """`[E, H]`"""
    shared: Swiglu | None
    experts: tuple[Swiglu, ...]
    """one for each slot of this rank"""


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


def load(source: Source, held: Held, dtype: np.dtype) -> Weights:
    """Reads what this rank holds, block by block, rounded to `dtype`. Not collective.

    Raises `InputError` where the source has values that are missing or not finite.
    """
    model = source.spec
    outer = {t.name: _fill(source, t, dtype) for t in spec.outer_tensors(model)}
    layers = tuple(_layer(source, n, held(n) if not model.is_dense(n) else [], dtype) for n in range(model.layers))
    return Weights(outer["embedding"], layers, outer["norm"], outer.get("head", outer["embedding"]))


def _layer(source: Source, layer: int, held: list[int], dtype: np.dtype) -> Layer:
    model = source.spec
    found = {(t.kind, t.expert): _fill(source, t, dtype) for t in spec.layer_tensors(model, layer)
             if t.expert is None or t.expert in held}

    def swiglu(name: str, expert: int | None = None) -> Swiglu:
        return Swiglu(found[f"{name}/gate_up", expert], found[f"{name}/down", expert])

    return Layer(found["attention_norm", None], found["attention/qkv", None], found["attention/o", None],
                 found["ffn_norm", None], dense=swiglu("dense") if model.is_dense(layer) else None,
                 gate=found.get(("gate", None)), shared=swiglu("shared") if ("shared/down", None) in found else None,
                 experts=tuple(swiglu("experts", e) for e in held))


def _fill(source: Source, tensor: Tensor, dtype: np.dtype) -> np.ndarray:
    out = np.empty(tensor.shape, np.float32)
    row = 0
    for block in source.blocks(tensor):
        out[row:row + len(block)] = array.widen(array.narrow(block)) if dtype == array.BFLOAT16 else block
        row += len(block)
    return out


def size(model: ModelSpec, held: Held, itemsize: int) -> dict[str, int]:
    """Bytes of the weights of one rank, by part of the model."""
    parts: dict[str, int] = {}
    for layer in range(model.layers):
        mine = held(layer) if not model.is_dense(layer) else []
        for t in spec.layer_tensors(model, layer):
            if t.expert is None or t.expert in mine:
                parts[t.part] = parts.get(t.part, 0) + t.values * itemsize
    for t in spec.outer_tensors(model):
        parts[t.part] = parts.get(t.part, 0) + t.values * itemsize
    return parts
