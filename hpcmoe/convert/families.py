"""Model families: for each, how its config.json becomes a spec, and what it calls each tensor.

A tensor of ours is one of theirs, or several one below the other (`qkv` is q, k and v). `{n}` stands for the
layer, `{e}` for the expert; a name with `[e]` is one tensor for all experts, cut along its first dimension.
Defaults, and what is rounded in bfloat16, are those of transformers 5's classes of that name.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from hpcmoe.convert.keys import Keys
from hpcmoe.spec import MOST_LAYERS, Attention, Dense, ModelSpec, Moe

Names = dict[str, tuple[str, ...]]


@dataclass(frozen=True)
class Family:
    """One `model_type` of Hugging Face's."""

    spec: Callable[[Keys, str], ModelSpec]
    """from config.json and the model's name"""
    names: Names
    fused: Names
    """other names of the same tensors, in files that keep all experts in one"""


def swiglu_names(kind: str, at: str) -> Names:
    """A feed-forward block of ours, `kind`, that is theirs at `at`."""
    return {f"{kind}/gate_up": (f"{at}.gate_proj.weight", f"{at}.up_proj.weight"),
            f"{kind}/down": (f"{at}.down_proj.weight",)}


LAYER = "model.layers.{n}"
COMMON: Names = {
    "embedding": ("model.embed_tokens.weight",),
    "norm": ("model.norm.weight",),
    "head": ("lm_head.weight",),
    "attention_norm": (f"{LAYER}.input_layernorm.weight",),
    "attention/qkv": tuple(f"{LAYER}.self_attn.{p}_proj.weight" for p in "qkv"),
    "attention/qkv_bias": tuple(f"{LAYER}.self_attn.{p}_proj.bias" for p in "qkv"),
    "attention/q_norm": (f"{LAYER}.self_attn.q_norm.weight",),
    "attention/k_norm": (f"{LAYER}.self_attn.k_norm.weight",),
    "attention/o": (f"{LAYER}.self_attn.o_proj.weight",),
    "ffn_norm": (f"{LAYER}.post_attention_layernorm.weight",),
}
QWEN: Names = (COMMON | swiglu_names("dense", f"{LAYER}.mlp") | swiglu_names("experts", f"{LAYER}.mlp.experts.{{e}}")
               | swiglu_names("shared", f"{LAYER}.mlp.shared_expert") | {
                   "gate": (f"{LAYER}.mlp.gate.weight",),
                   "shared_gate": (f"{LAYER}.mlp.shared_expert_gate.weight",)})
MIXTRAL: Names = COMMON | {
    "gate": (f"{LAYER}.block_sparse_moe.gate.weight",),
    "experts/gate_up": (f"{LAYER}.block_sparse_moe.experts.{{e}}.w1.weight",
                        f"{LAYER}.block_sparse_moe.experts.{{e}}.w3.weight"),
    "experts/down": (f"{LAYER}.block_sparse_moe.experts.{{e}}.w2.weight",),
}
FUSED: Names = {
    "gate": (f"{LAYER}.mlp.gate.weight",),
    "experts/gate_up": (f"{LAYER}.mlp.experts.gate_up_proj[e]",),
    "experts/down": (f"{LAYER}.mlp.experts.down_proj[e]",),
}


def decoder(keys: Keys, name: str, attention: Attention, dense: Dense | None, moe: Moe, eps: float) -> ModelSpec:
    """What every family has."""
    keys.only("hidden_act", "silu")
    return ModelSpec(name, keys.whole("num_hidden_layers"), keys.whole("hidden_size"), keys.whole("vocab_size"),
                     keys.whole("max_position_embeddings"), attention, dense, moe,
                     norm_eps=keys.number("rms_norm_eps", default=eps),
                     tied_head=keys.flag("tie_word_embeddings", False), eos=keys.eos())


def heads(keys: Keys, kv_default: int | None = None) -> tuple[int, int, int]:
    """Query heads, key and value heads, and values per head."""
    count = keys.whole("num_attention_heads", least=1)
    return (count, keys.whole("num_key_value_heads", default=kv_default or count),
            keys.whole("head_dim", default=keys.peek("hidden_size") // count))


def mixtral(keys: Keys, name: str) -> ModelSpec:
    """Mixtral: always renormalised; logits are rounded, weights are not."""
    attention = Attention(*heads(keys, 8), keys.rope_theta(1e6), window=keys.whole("sliding_window", default=0))
    moe = Moe(keys.whole("num_local_experts", "num_experts", default=8), keys.whole("num_experts_per_tok", default=2),
              keys.whole("intermediate_size"), round_logits=True)
    return decoder(keys, name, attention, None, moe, 1e-5)


def qwen2_moe(keys: Keys, name: str) -> ModelSpec:
    """Qwen1.5-MoE and Qwen2-MoE: biases, a shared expert behind a gate, dense layers by step or by list."""
    attention = Attention(*heads(keys), keys.rope_theta(1e4), window=qwen_window(keys),
                          bias=keys.flag("qkv_bias", True))
    moe = Moe(keys.whole("num_experts", "num_local_experts", default=60), keys.whole("num_experts_per_tok", default=4),
              keys.whole("moe_intermediate_size", default=1408), keys.flag("norm_topk_prob", False),
              shared_hidden=keys.whole("shared_expert_intermediate_size", default=5632), shared_gate=True,
              round_logits=True, round_weights=True)
    return decoder(keys, name, attention, sparse_by_step(keys), moe, 1e-6)


def qwen3_moe(keys: Keys, name: str) -> ModelSpec:
    """Qwen3-MoE: norms of each head's queries and keys."""
    attention = Attention(*heads(keys, 4), keys.rope_theta(1e4), window=qwen_window(keys), qk_norm="head")
    keys.only("attention_bias", False)
    moe = Moe(keys.whole("num_experts", "num_local_experts", default=128), keys.whole("num_experts_per_tok", default=8),
              keys.whole("moe_intermediate_size", default=768), keys.flag("norm_topk_prob", False),
              round_logits=True, round_weights=True)
    return decoder(keys, name, attention, sparse_by_step(keys), moe, 1e-6)


def olmoe(keys: Keys, name: str) -> ModelSpec:
    """OLMoE: norms of all queries and keys together, then a bound."""
    attention = Attention(*heads(keys), keys.rope_theta(1e4), qk_norm="full", clip=keys.number("clip_qkv", default=0.0))
    keys.only("attention_bias", False)
    moe = Moe(keys.whole("num_experts", "num_local_experts", default=64), keys.whole("num_experts_per_tok", default=8),
              keys.whole("intermediate_size"), keys.flag("norm_topk_prob", False), round_logits=True,
              round_weights=True)
    return decoder(keys, name, attention, None, moe, 1e-5)


def sparse_by_step(keys: Keys) -> Dense | None:
    """Layers that `mlp_only_layers` lists, and those between the steps, are dense."""
    step, listed = keys.whole("decoder_sparse_step", default=1, least=1), keys.items("mlp_only_layers")
    width = keys.whole("intermediate_size")
    layers = min(keys.peek("num_hidden_layers"), MOST_LAYERS)  # more are refused later
    dense = tuple(n for n in range(layers) if n in listed or (n + 1) % step)
    return Dense(width, dense) if dense else None


def qwen_window(keys: Keys) -> int:
    """The window, where it is switched on for all layers; a mixture of layers is refused."""
    window, used = keys.whole("sliding_window", default=4096), keys.flag("use_sliding_window", False)
    kinds = keys.items("layer_types")
    keys.take("max_window_layers", default=0)
    if used and (not kinds or any(kind != "sliding_attention" for kind in kinds)):
        raise keys.refused("use_sliding_window", True, "false, or layer_types that are all sliding_attention")
    return window if used else 0


FAMILIES: Mapping[str, Family] = {
    "mixtral": Family(mixtral, MIXTRAL, FUSED),
    "olmoe": Family(olmoe, QWEN, FUSED),
    "qwen2_moe": Family(qwen2_moe, QWEN, FUSED),
    "qwen3_moe": Family(qwen3_moe, QWEN, FUSED),
}
