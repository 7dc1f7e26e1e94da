"""Model families: for each, how its config.json becomes a spec, and what it calls each tensor.

A tensor of ours is one of theirs, or several one below the other (`qkv` is q, k and v). `{n}` stands for the
layer, `{e}` for the expert; a name with `[e]` is one tensor for all experts, cut along its first dimension.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from hpcmoe.convert.keys import Keys
from hpcmoe.spec import Attention, ModelSpec, Moe

Names = dict[str, tuple[str, ...]]


@dataclass(frozen=True)
class Family:
    """One `model_type` of Hugging Face's."""

    spec: Callable[[Keys, str], ModelSpec]
    """from config.json and the model's name"""
    names: Names
    fused: Names
    """other names of the same tensors, in files that keep all experts in one"""


COMMON: Names = {
    "embedding": ("model.embed_tokens.weight",),
    "norm": ("model.norm.weight",),
    "head": ("lm_head.weight",),
    "attention_norm": ("model.layers.{n}.input_layernorm.weight",),
    "attention/qkv": tuple(f"model.layers.{{n}}.self_attn.{p}_proj.weight" for p in "qkv"),
    "attention/o": ("model.layers.{n}.self_attn.o_proj.weight",),
    "ffn_norm": ("model.layers.{n}.post_attention_layernorm.weight",),
}

FUSED: Names = {
    "experts/gate_up": ("model.layers.{n}.mlp.experts.gate_up_proj[e]",),
    "experts/down": ("model.layers.{n}.mlp.experts.down_proj[e]",),
}


def mixtral(keys: Keys, name: str) -> ModelSpec:
    """Mixtral; defaults are those of transformers' MixtralConfig."""
    hidden, heads = keys.whole("hidden_size"), keys.whole("num_attention_heads")
    keys.only("hidden_act", "silu")
    attention = Attention(heads, keys.whole("num_key_value_heads", default=heads),
                          keys.whole("head_dim", default=hidden // heads), keys.rope_theta(1e6),
                          window=keys.whole("sliding_window", default=0))
    moe = Moe(keys.whole("num_local_experts", "num_experts", default=8), keys.whole("num_experts_per_tok", default=2),
              keys.whole("intermediate_size"), round_logits=True)
    return ModelSpec(name, keys.whole("num_hidden_layers"), hidden, keys.whole("vocab_size"),
                     keys.whole("max_position_embeddings"), attention, None, moe,
                     norm_eps=keys.number("rms_norm_eps", default=1e-5),
                     tied_head=keys.flag("tie_word_embeddings", False), eos=keys.eos())


MIXTRAL_NAMES: Names = COMMON | {
    "gate": ("model.layers.{n}.block_sparse_moe.gate.weight",),
    "experts/gate_up": ("model.layers.{n}.block_sparse_moe.experts.{e}.w1.weight",
                        "model.layers.{n}.block_sparse_moe.experts.{e}.w3.weight"),
    "experts/down": ("model.layers.{n}.block_sparse_moe.experts.{e}.w2.weight",),
}

FAMILIES: Mapping[str, Family] = {
    "mixtral": Family(mixtral, MIXTRAL_NAMES, FUSED | {"gate": ("model.layers.{n}.mlp.gate.weight",)}),
}
