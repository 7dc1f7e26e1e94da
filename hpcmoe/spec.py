"""ModelSpec: every shape and switch of a model, and what follows from them."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod

from hpcmoe.tables import key

MOST_LAYERS, MOST_EXPERTS, MOST_IN_ALL = 4096, 4096, 2**18
"""Layers, experts of a layer, and of all layers: beyond any model, and few enough to go through them in seconds."""
WIDEST = 2**24
"""Values of a row."""


@dataclass(frozen=True)
class Yarn:
    """RoPE stretched over a longer context (Peng et al., "YaRN", 2023, section 3)."""

    factor: float = key(help="how many times as long the context becomes", least=1)
    context: int = key(help="tokens of the context before", least=1, most=2**31)
    fast: float = key(32.0, help="turns within that context from which on a frequency stays as it is", least=0)
    slow: float = key(1.0, help="turns up to which a frequency is divided by the factor", least=0)
    whole: bool = key(True, help="whether the ramp between the two begins and ends at whole pairs")
    magnitude: float = key(1.0, help="factor on cosines and sines", least=0)


@dataclass(frozen=True)
class Latent:
    """Keys and values of all heads from one vector per token, which is all that the cache keeps: multi-head latent
    attention (DeepSeek-AI, "DeepSeek-V2", 2024, section 2.1)."""

    rank: int = key(help="values of the vector from which keys and values are made", least=1, most=WIDEST)
    rotary_dim: int = key(help="values of a query that turn with its position, and of the one key for all heads that "
                               "does; even", least=2, most=WIDEST)
    value_dim: int = key(help="values of a head's answer", least=1, most=WIDEST)
    query_rank: int = key(0, help="values of the vector from which queries are made; 0 = from the token itself",
                          least=0, most=WIDEST)
    norm_eps: float = key(1e-6, help="epsilon of the RMS norms of both vectors", least=0)


@dataclass(frozen=True)
class Attention:
    """Causal self-attention with grouped queries (multi-head where kv_heads = heads) and RoPE."""

    heads: int = key(help="query heads", least=1, most=WIDEST)
    kv_heads: int = key(help="key and value heads; divides heads", least=1, most=WIDEST)
    head_dim: int = key(help="values per head, even; with a latent, those of its queries and keys that do not turn",
                        least=2, most=WIDEST)
    rope_theta: float = key(10000.0, help="base of the rotary frequencies", least=1)
    rotary_dim: int = key(0, help="values of a head that turn with the position, its first ones; even; 0 = all",
                          least=0, most=WIDEST)
    yarn: Yarn | None = key(None, help="the rotary frequencies' stretch, if any")
    score_factor: float = key(1.0, help="factor on scores, beside 1 / sqrt(values of a query)", least=0)
    window: int = key(0, help="tokens that a token sees, itself included; 0 = all", least=0)
    window_layers: tuple[int, ...] = key((), help="the layers with that window; none = all layers")
    bias: bool = key(False, help="whether queries, keys and values have a bias")
    output_bias: bool = key(False, help="whether what attention adds to a token has a bias")
    qk_norm: str = key("none", help="RMS norm of queries and keys: of each head, or of their full width",
                       choices=("none", "head", "full"))
    clip: float = key(0.0, help="bound of queries, keys and values, behind the norm; 0 = none", least=0)
    sinks: bool = key(False, help="whether each head has a logit that takes part in the softmax, and gives nothing")
    latent: Latent | None = key(None, help="keys and values from one vector per token, if so")

    @property
    def query_dim(self) -> int:
        """Values of a head's query."""
        return self.head_dim + (self.latent.rotary_dim if self.latent else 0)

    @property
    def query_width(self) -> int:
        return self.heads * self.query_dim

    @property
    def kv_width(self) -> int:
        return self.kv_heads * self.head_dim

    @property
    def mixed_width(self) -> int:
        """Values of all heads' answers."""
        return self.heads * (self.latent.value_dim if self.latent else self.head_dim)

    @property
    def turning(self) -> int:
        """Values of a head that turn with the position."""
        return self.latent.rotary_dim if self.latent else self.rotary_dim or self.head_dim

    @property
    def scale(self) -> float:
        """Factor on the product of a query and a key."""
        return self.query_dim ** -0.5 * self.score_factor

    def window_in(self, layer: int) -> int:
        """Tokens that a token sees in `layer`, itself included; 0 for all."""
        return self.window if not self.window_layers or layer in self.window_layers else 0


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
    logit_bias: bool = key(False, help="whether the gate's logits have a bias")
    selection_bias: bool = key(False, help="whether a bias per expert counts in the choice; weights are without it")
    groups: int = key(1, help="groups of neighbouring experts; divides E", least=1)
    groups_kept: int = key(1, help="groups from which a token's experts are chosen", least=1)
    group_score: str = key("top2", help="of a group: its best score, or the sum of its two best",
                           choices=("max", "top2"))
    shared_hidden: int = key(0, help="width of the shared expert that sees every token; 0 = none", least=0, most=WIDEST)
    shared_gate: bool = key(False, help="whether a sigmoid gate weighs the shared expert's answer")
    expert_bias: bool = key(False, help="whether both matrices of an expert have a bias")
    limit: float = key(0.0, help="bound of gate and up in experts that compute (up + 1) * gate * sigmoid(1.702 gate), "
                                 "as GPT-OSS's; 0 = SwiGLU", least=0)
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
    def exact(self) -> bool:
        """Whether it stays float32 where others become bfloat16: a bias in the choice of experts, which is small steps
        on large values."""
        return self.kind == "gate_bias"

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
    norm_weight_first: bool = key(False, help="whether RMS norms round behind their weight only, not before it too")
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


def latent_of(spec: ModelSpec) -> Latent:
    """Of a model whose attention has one."""
    assert spec.attention.latent is not None
    return spec.attention.latent


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
    yield from (_latent if a.latent else _grouped)(f"{at}/attention", a, H)
    yield Tensor(f"{at}/attention/o", (H, a.mixed_width), "attention")
    if a.output_bias:
        yield Tensor(f"{at}/attention/o_bias", (H,), "attention")
    if a.sinks:
        yield Tensor(f"{at}/attention/sinks", (a.heads,), "attention")
    yield Tensor(f"{at}/ffn_norm", (H,), "norm")
    if spec.is_dense(layer):
        assert spec.dense is not None
        yield from _swiglu(f"{at}/dense", H, spec.dense.hidden, "dense")
        return
    assert spec.moe is not None
    yield Tensor(f"{at}/gate", (spec.moe.experts, H), "gate")
    if spec.moe.logit_bias:
        yield Tensor(f"{at}/logit_bias", (spec.moe.experts,), "gate")
    if spec.moe.selection_bias:
        yield Tensor(f"{at}/gate_bias", (spec.moe.experts,), "gate")
    if spec.moe.shared_hidden:
        yield from _swiglu(f"{at}/shared", H, spec.moe.shared_hidden, "shared")
        if spec.moe.shared_gate:
            yield Tensor(f"{at}/shared_gate", (1, H), "shared")
    for e in range(spec.moe.experts):
        yield from _swiglu(f"{at}/experts/{e:03d}", H, spec.moe.hidden, "experts", e, spec.moe.expert_bias)


def _grouped(at: str, a: Attention, H: int) -> Iterator[Tensor]:
    yield Tensor(f"{at}/qkv", (a.query_width + 2 * a.kv_width, H), "attention")
    if a.bias:
        yield Tensor(f"{at}/qkv_bias", (a.query_width + 2 * a.kv_width,), "attention")
    if a.qk_norm != "none":
        full = a.qk_norm == "full"
        yield Tensor(f"{at}/q_norm", (a.query_width if full else a.head_dim,), "norm")
        yield Tensor(f"{at}/k_norm", (a.kv_width if full else a.head_dim,), "norm")


def _latent(at: str, a: Attention, H: int) -> Iterator[Tensor]:
    """A head's query: first what does not turn. kv_b has a head's key, then its value."""
    assert a.latent is not None
    c = a.latent
    if c.query_rank:
        yield Tensor(f"{at}/q_a", (c.query_rank, H), "attention")
        yield Tensor(f"{at}/q_a_norm", (c.query_rank,), "norm")
    yield Tensor(f"{at}/q", (a.query_width, c.query_rank or H), "attention")
    yield Tensor(f"{at}/kv_a", (c.rank + c.rotary_dim, H), "attention")
    yield Tensor(f"{at}/kv_a_norm", (c.rank,), "norm")
    yield Tensor(f"{at}/kv_b", (a.heads * (a.head_dim + c.value_dim), c.rank), "attention")


def _swiglu(at: str, H: int, width: int, part: str, expert: int | None = None, bias: bool = False) -> Iterator[Tensor]:
    yield Tensor(f"{at}/gate_up", (2 * width, H), part, expert)  # gate rows first
    if bias:
        yield Tensor(f"{at}/gate_up_bias", (2 * width,), part, expert)
    yield Tensor(f"{at}/down", (H, width), part, expert)
    if bias:
        yield Tensor(f"{at}/down_bias", (H,), part, expert)
