"""ModelSpec: every shape and switch of a model, and what follows from them."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod
from pathlib import Path

from hpcmoe import tables
from hpcmoe.errors import HpcmoeError, InputError
from hpcmoe.tables import Bad, key

MOST_LAYERS, MOST_EXPERTS, MOST_IN_ALL = 4096, 4096, 2**18
"""Layers, experts of a layer, and of all layers: beyond any model, and few enough to go through them in seconds."""
WIDEST = 2**24
"""Values of a row."""


@dataclass(frozen=True)
class Attention:
    """Causal self-attention with grouped queries (multi-head where kv_heads = heads) and RoPE."""

    heads: int = key(help="query heads", least=1, most=WIDEST)
    kv_heads: int = key(help="key and value heads; divides heads", least=1, most=WIDEST)
    head_dim: int = key(help="values per head; even", least=2, most=WIDEST)
    rope_theta: float = key(10000.0, help="base of the rotary frequencies", least=1)
    window: int = key(0, help="tokens that a token sees, itself included; 0 = all", least=0)
    bias: bool = key(False, help="whether queries, keys and values have a bias")
    qk_norm: str = key("none", help="RMS norm of queries and keys: of each head, or of their full width",
                       choices=("none", "head", "full"))
    clip: float = key(0.0, help="bound of queries, keys and values, behind the norm; 0 = none", least=0)

    @property
    def query_width(self) -> int:
        return self.heads * self.head_dim

    @property
    def kv_width(self) -> int:
        return self.kv_heads * self.head_dim


@dataclass(frozen=True)
class Dense:
    """The layers whose feed-forward block is one SwiGLU for all tokens."""

    hidden: int = key(help="width of the SwiGLU", least=1, most=WIDEST)
    layers: int | tuple[int, ...] = key(help="how many of the first layers, or a list of layers from 0", least=0)


@dataclass(frozen=True)
class Moe:
    """The layers whose feed-forward block is a gate and E experts."""

    experts: int = key(help="E", least=1, most=MOST_EXPERTS)
    top_k: int = key(help="K, experts per token", least=1)
    hidden: int = key(help="I, width of an expert", least=1, most=WIDEST)
    renormalise: bool = key(True, help="divide the K weights by their sum")
    scale: float = key(1.0, help="factor on the K weights")
    score: str = key("softmax", help="what logits become: softmax over all E, sigmoid, or softmax over the chosen K",
                     choices=("softmax", "sigmoid", "softmax_of_chosen"))
    selection_bias: bool = key(False, help="whether a bias per expert counts in the choice; weights are without it")
    groups: int = key(1, help="groups of neighbouring experts; divides E", least=1)
    groups_kept: int = key(1, help="groups from which a token's experts are chosen", least=1)
    group_score: str = key("top2", help="of a group: its best score, or the sum of its two best",
                           choices=("max", "top2"))
    shared_hidden: int = key(0, help="width of the shared expert that sees every token; 0 = none", least=0, most=WIDEST)
    shared_gate: bool = key(False, help="whether a sigmoid gate weighs the shared expert's answer")
    round_logits: bool = key(False, help="round gate logits to the compute dtype, as some families do")
    round_weights: bool = key(False, help="round the K weights too, and each weighted answer before the sum")


@dataclass(frozen=True)
class Tensor:
    """One weight of a model: its name in model.h5, its shape, and the part of the model it belongs to."""

    name: str
    shape: tuple[int, ...]
    part: str
    expert: int | None = None

    @property
    def values(self) -> int:
        return prod(self.shape)

    @property
    def layer(self) -> int | None:
        """The layer that it is in, None outside of them."""
        return int(self.name.split("/")[1]) if self.name.startswith("layers/") else None

    @property
    def kind(self) -> str:
        """The name without the numbers of layer and expert, as "experts/down"."""
        return re.sub(r"^layers/\d+/|(?<=experts/)\d+/", "", self.name)


@dataclass(frozen=True)
class ModelSpec:
    """A pre-norm decoder: L layers of attention and a feed-forward block, dense or mixture-of-experts."""

    name: str = key(help="what to call the model")
    layers: int = key(help="L", least=1, most=MOST_LAYERS)
    hidden: int = key(help="H, the token dimension", least=1, most=WIDEST)
    vocabulary: int = key(help="V", least=1, most=2**31)
    context: int = key(help="the longest sequence, prompt and answer together", least=2, most=2**31)
    attention: Attention = key(help="the attention block")
    dense: Dense | None = key(None, help="the dense layers, if any")
    moe: Moe | None = key(None, help="the mixture-of-experts layers, if any")
    norm_eps: float = key(1e-6, help="epsilon of the RMS norms", least=0)
    tied_head: bool = key(False, help="the head is the embedding")
    eos: tuple[int, ...] = field(default=(), metadata={"help": "tokens that end a sequence"})

    def is_dense(self, layer: int) -> bool:
        """Whether `layer`, from 0, has a dense feed-forward block."""
        if self.moe is None:
            return True
        if self.dense is None:
            return False
        first = self.dense.layers
        return layer in first if isinstance(first, tuple) else layer < first

    @property
    def moe_layers(self) -> tuple[int, ...]:
        """The layers with experts, ascending."""
        return tuple(n for n in range(self.layers) if not self.is_dense(n))

    @property
    def experts(self) -> int:
        """E, or 0 for a dense model."""
        return self.moe.experts if self.moe else 0


def tensors(spec: ModelSpec) -> Iterator[Tensor]:
    """Every weight of the model, in the order of a token's way. Matrices are `[out, in]`."""
    embedding, *last = outer_tensors(spec)
    yield embedding
    for n in range(spec.layers):
        yield from layer_tensors(spec, n)
    yield from last


def outer_tensors(spec: ModelSpec) -> Iterator[Tensor]:
    """The weights outside the layers: embedding, last norm, and the head where it is not tied."""
    yield Tensor("embedding", (spec.vocabulary, spec.hidden), "embedding")
    yield Tensor("norm", (spec.hidden,), "norm")
    if not spec.tied_head:
        yield Tensor("head", (spec.vocabulary, spec.hidden), "head")


def layer_tensors(spec: ModelSpec, layer: int) -> Iterator[Tensor]:
    """The weights of one layer; those of experts carry the expert's number."""
    at, H, a = f"layers/{layer:03d}", spec.hidden, spec.attention
    yield Tensor(f"{at}/attention_norm", (H,), "norm")
    yield Tensor(f"{at}/attention/qkv", (a.query_width + 2 * a.kv_width, H), "attention")
    if a.bias:
        yield Tensor(f"{at}/attention/qkv_bias", (a.query_width + 2 * a.kv_width,), "attention")
    if a.qk_norm != "none":
        full = a.qk_norm == "full"
        yield Tensor(f"{at}/attention/q_norm", (a.query_width if full else a.head_dim,), "norm")
        yield Tensor(f"{at}/attention/k_norm", (a.kv_width if full else a.head_dim,), "norm")
    yield Tensor(f"{at}/attention/o", (H, a.query_width), "attention")
    yield Tensor(f"{at}/ffn_norm", (H,), "norm")
    if spec.is_dense(layer):
        assert spec.dense is not None
        yield from _swiglu(f"{at}/dense", H, spec.dense.hidden, "dense")
        return
    assert spec.moe is not None
    yield Tensor(f"{at}/gate", (spec.moe.experts, H), "gate")
    if spec.moe.selection_bias:
        yield Tensor(f"{at}/gate_bias", (spec.moe.experts,), "gate")
    if spec.moe.shared_hidden:
        yield from _swiglu(f"{at}/shared", H, spec.moe.shared_hidden, "shared")
        if spec.moe.shared_gate:
            yield Tensor(f"{at}/shared_gate", (1, H), "shared")
    for e in range(spec.moe.experts):
        yield from _swiglu(f"{at}/experts/{e:03d}", H, spec.moe.hidden, "experts", e)


def _swiglu(at: str, H: int, width: int, part: str, expert: int | None = None) -> Iterator[Tensor]:
    yield Tensor(f"{at}/gate_up", (2 * width, H), part, expert)  # gate rows first
    yield Tensor(f"{at}/down", (H, width), part, expert)


def from_table(table: dict) -> ModelSpec:
    """A ModelSpec from parsed TOML. Raises `tables.Bad`."""
    spec = tables.build(ModelSpec, table)
    a, m, d = spec.attention, spec.moe, spec.dense
    if a.heads % a.kv_heads:
        raise Bad("attention.kv_heads", f"{a.kv_heads} does not divide heads = {a.heads}")
    if a.head_dim % 2:
        raise Bad("attention.head_dim", f"{a.head_dim} is odd; RoPE needs pairs")
    if m and m.top_k > m.experts:
        raise Bad("moe.top_k", f"{m.top_k} is more than experts = {m.experts}")
    if m:
        _check_groups(m)
    if d:
        _check_dense(d, spec)
    elif m is None:
        raise Bad("dense", "missing: a model without [moe] needs [dense]")
    if spec.layers * spec.experts > MOST_IN_ALL:
        raise Bad("moe.experts", f"{m.experts if m else 0} in each of {spec.layers} layers are more than "
                                 f"{MOST_IN_ALL:,} together")
    if any(not 0 <= t < spec.vocabulary for t in spec.eos):
        raise Bad("eos", f"{list(spec.eos)} is not inside the vocabulary of {spec.vocabulary}")
    return spec


def _check_dense(d: Dense, spec: ModelSpec) -> None:
    if isinstance(d.layers, tuple):
        count, outside = len(set(d.layers)), any(not 0 <= n < spec.layers for n in d.layers)
    else:
        count, outside = d.layers, d.layers > spec.layers
    if outside:
        raise Bad("dense.layers", f"names a layer outside 0 to {spec.layers - 1}")
    if spec.moe is None and count < spec.layers:
        raise Bad("dense.layers", f"names {count} of {spec.layers} layers, and there is no [moe] for the others")


def _check_groups(m: Moe) -> None:
    if m.experts % m.groups:
        raise Bad("moe.groups", f"{m.groups} does not divide experts = {m.experts}")
    if m.groups_kept > m.groups:
        raise Bad("moe.groups_kept", f"{m.groups_kept} is more than groups = {m.groups}")
    if m.top_k > m.groups_kept * (m.experts // m.groups):
        raise Bad("moe.top_k", f"{m.top_k} is more than the experts of {m.groups_kept} groups")
    if m.shared_gate and not m.shared_hidden:
        raise Bad("moe.shared_gate", "is true, but there is no shared expert (shared_hidden = 0)")


def load(path: Path) -> ModelSpec:
    """The spec in a TOML file. Raises `InputError`."""
    return from_named_table(tables.read(path, InputError, "spec"), f"spec {path}", InputError)


def check(spec: ModelSpec, where: str) -> None:
    """Raises `InputError`, naming `where` it came from, where no table would give `spec`: what does not fit together
    is found before a file is written that cannot be opened."""
    from_named_table(tables.plain(spec), where, InputError)


def from_named_table(table: dict, where: str, error: type[HpcmoeError]) -> ModelSpec:
    """`from_table`, with a misfit raised as `error` that names `where` it was found."""
    try:
        return from_table(table)
    except Bad as bad:
        raise error(f"{where}: {bad}") from None
