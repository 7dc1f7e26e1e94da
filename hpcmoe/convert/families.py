"""Model families: for each, how its config.json becomes a spec; what it calls each tensor is in `names`.

Defaults, and what is rounded in bfloat16, are those of transformers 5's classes of that name.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from hpcmoe.convert.keys import Keys
from hpcmoe.convert.names import (
    DEEPSEEK,
    FUSED,
    GPT_OSS,
    GROUPED,
    LATENT,
    MIXTRAL,
    ONE_QUERY,
    QWEN,
    Names,
    gate_rows_first,
    pairs_apart,
)
from hpcmoe.convert.rotary import Rotary, rotary
from hpcmoe.spec import MOST_LAYERS, Attention, Dense, Latent, ModelSpec, Moe, Tensor


@dataclass(frozen=True)
class Family:
    """One `model_type` of Hugging Face's."""

    spec: Callable[[Keys, str], ModelSpec]
    """from config.json and the model's name"""
    names: Names
    others: tuple[Names, ...] = (FUSED,)
    """other names of the same tensors, as in files that keep all experts in one"""
    order: Callable[[ModelSpec, Tensor], np.ndarray | None] = lambda model, tensor: None
    """which of their rows each of our rows is, where that is another order"""


def decoder(keys: Keys, name: str, attention: Attention, dense: Dense | None, moe: Moe, eps: float,
            norm_weight_first: bool = False) -> ModelSpec:
    """What every family has."""
    keys.only("hidden_act", "silu")
    return ModelSpec(name, keys.whole("num_hidden_layers"), keys.whole("hidden_size"), keys.whole("vocab_size"),
                     keys.whole("max_position_embeddings"), attention, dense, moe,
                     norm_eps=keys.number("rms_norm_eps", default=eps), norm_weight_first=norm_weight_first,
                     tied_head=keys.flag("tie_word_embeddings", False), eos=keys.eos())


def heads(keys: Keys, kv_default: int | None = None, head_dim: int | None = None) -> tuple[int, int, int]:
    """Query heads, key and value heads, and values per head."""
    count = keys.whole("num_attention_heads", least=1)
    return (count, keys.whole("num_key_value_heads", default=kv_default or count),
            keys.whole("head_dim", default=head_dim or keys.peek("hidden_size") // count))


def theta(keys: Keys, default: float) -> float:
    """The base of the rotary frequencies of a family that stretches none."""
    found = whole_heads(keys, rotary(keys, default))
    if found.yarn:
        raise keys.refused("rope_type", "yarn", "'default', in this family,")
    return found.theta


def whole_heads(keys: Keys, found: Rotary) -> Rotary:
    """The same, checked to turn all of what may turn."""
    if found.partial != 1:
        raise keys.refused("partial_rotary_factor", found.partial, "1, in this family,")
    return found


def mixtral(keys: Keys, name: str) -> ModelSpec:
    """Mixtral: always renormalised; logits are rounded, weights are not."""
    attention = Attention(*heads(keys, 8), theta(keys, 1e6), window=keys.whole("sliding_window", default=0))
    moe = Moe(keys.whole("num_local_experts", "num_experts", default=8), keys.whole("num_experts_per_tok", default=2),
              keys.whole("intermediate_size"), round_logits=True)
    return decoder(keys, name, attention, None, moe, 1e-5)


def qwen2_moe(keys: Keys, name: str) -> ModelSpec:
    """Qwen1.5-MoE and Qwen2-MoE: biases, a shared expert behind a gate, dense layers by step or by list."""
    attention = Attention(*heads(keys), theta(keys, 1e4), window=qwen_window(keys), bias=keys.flag("qkv_bias", True))
    moe = Moe(keys.whole("num_experts", "num_local_experts", default=60), keys.whole("num_experts_per_tok", default=4),
              keys.whole("moe_intermediate_size", default=1408), keys.flag("norm_topk_prob", False),
              shared_hidden=keys.whole("shared_expert_intermediate_size", default=5632), shared_gate=True,
              round_logits=True, round_weights=True)
    return decoder(keys, name, attention, sparse_by_step(keys), moe, 1e-6)


def qwen3_moe(keys: Keys, name: str) -> ModelSpec:
    """Qwen3-MoE: norms of each head's queries and keys."""
    attention = Attention(*heads(keys, 4), theta(keys, 1e4), window=qwen_window(keys), qk_norm="head")
    keys.only("attention_bias", False)
    moe = Moe(keys.whole("num_experts", "num_local_experts", default=128), keys.whole("num_experts_per_tok", default=8),
              keys.whole("moe_intermediate_size", default=768), keys.flag("norm_topk_prob", False),
              round_logits=True, round_weights=True)
    return decoder(keys, name, attention, sparse_by_step(keys), moe, 1e-6)


def olmoe(keys: Keys, name: str) -> ModelSpec:
    """OLMoE: norms of all queries and keys together, then a bound."""
    attention = Attention(*heads(keys), theta(keys, 1e4), qk_norm="full", clip=keys.number("clip_qkv", default=0.0))
    keys.only("attention_bias", False)
    moe = Moe(keys.whole("num_experts", "num_local_experts", default=64), keys.whole("num_experts_per_tok", default=8),
              keys.whole("intermediate_size"), keys.flag("norm_topk_prob", False), round_logits=True,
              round_weights=True)
    return decoder(keys, name, attention, None, moe, 1e-5)


def deepseek_v2(keys: Keys, name: str) -> ModelSpec:
    """DeepSeek-V2: a latent; softmax, of whose groups the best by their best expert count."""
    method = keys.take("topk_method", default="greedy")
    if method not in ("greedy", "group_limited_greedy"):
        raise keys.refused("topk_method", method, "'greedy' or 'group_limited_greedy'")
    groups = keys.whole("n_group", default=1), keys.whole("topk_group", default=1)
    keys.only("norm_topk_prob", False)
    keys.only("scoring_func", "softmax")
    keys.only("mlp_bias", False)
    moe = Moe(keys.whole("n_routed_experts", "num_experts", default=64), keys.whole("num_experts_per_tok"),
              keys.whole("moe_intermediate_size", default=1407), False, keys.number("routed_scaling_factor", default=1),
              groups=groups[0] if method != "greedy" else 1, groups_kept=groups[1] if method != "greedy" else 1,
              group_score="max")
    return with_shared(keys, name, latent(keys), moe, shared=2, dense=0, eps=1e-6)


def deepseek_v3(keys: Keys, name: str) -> ModelSpec:
    """DeepSeek-V3: a latent; sigmoid and a bias, of whose groups the best by their two best experts count."""
    keys.only("rope_interleave", True)
    return with_shared(keys, name, latent(keys), sigmoid(keys, 256, 2048, groups=(8, 4), scale=2.5), shared=1, dense=3,
                       eps=1e-6)


def glm4_moe(keys: Keys, name: str) -> ModelSpec:
    """GLM-4.5: as DeepSeek-V3 without a latent, and half of each head turns."""
    count, kv, dim = heads(keys, 8)
    turns = rotary(keys, 1e4, partial=0.5)
    turning = int(dim * turns.partial)
    if not 0 < turning <= dim:
        raise keys.wrong("partial_rotary_factor", turns.partial, "a part of a head that turns")
    attention = Attention(count, kv, dim, turns.theta, yarn=turns.yarn, rotary_dim=turning,
                          bias=keys.flag("attention_bias", False),
                          qk_norm="head" if keys.flag("use_qk_norm", False) else "none")
    moe = sigmoid(keys, 128, 1408, groups=(1, 1), scale=1.0)
    return with_shared(keys, name, attention, moe, shared=1, dense=1, eps=1e-5)


def gpt_oss(keys: Keys, name: str) -> ModelSpec:
    """GPT-OSS: sinks, windows in every other layer, a stretch, biases everywhere, experts with a bound."""
    count, kv, dim = heads(keys, 8, 64)
    turns = whole_heads(keys, rotary(keys, 150000.0, missing=GPT_OSS_STRETCH))
    bias, window = keys.flag("attention_bias", True), keys.whole("sliding_window", default=128)
    attention = Attention(count, kv, dim, turns.theta, yarn=turns.yarn, window=window, window_layers=sliding(keys),
                          bias=bias, output_bias=bias, sinks=True)
    keys.only("swiglu_alpha", 1.702)
    keys.take("initial_context_length", default=0)  # rope_scaling says it again
    top_k = keys.whole("num_experts_per_tok", "experts_per_token", default=4)
    moe = Moe(keys.whole("num_local_experts", "num_experts"), top_k, keys.whole("intermediate_size"),
              score="softmax_of_chosen", logit_bias=True, expert_bias=True,
              limit=keys.number("swiglu_limit", default=7.0), round_logits=True, round_weights=True)
    return decoder(keys, name, attention, None, moe, 1e-5, norm_weight_first=True)


def latent(keys: Keys) -> Attention:
    """Attention with a latent, as DeepSeek-V2 and V3 have it."""
    count, dim = keys.whole("num_attention_heads", least=1), keys.whole("qk_nope_head_dim", default=128)
    turning = keys.whole("qk_rope_head_dim", default=64)
    for key, value in (("num_key_value_heads", count), ("head_dim", turning), ("qk_head_dim", dim + turning),
                       ("attention_bias", False)):
        keys.only(key, value)
    turns = rotary(keys, 1e4)
    rank = keys.whole("q_lora_rank", default=0 if keys.null("q_lora_rank") else 1536)
    found = Latent(keys.whole("kv_lora_rank", default=512), turning, keys.whole("v_head_dim", default=128), rank)
    return Attention(count, count, dim, whole_heads(keys, turns).theta, yarn=turns.yarn, score_factor=turns.stretch,
                     latent=found)


def sigmoid(keys: Keys, experts: int, hidden: int, groups: tuple[int, int], scale: float) -> Moe:
    """The gate and experts of DeepSeek-V3's kind; numbers are the family's defaults."""
    keys.only("scoring_func", "sigmoid")
    keys.only("topk_method", "noaux_tc")
    return Moe(keys.whole("n_routed_experts", "num_local_experts", "num_experts", default=experts),
               keys.whole("num_experts_per_tok", default=8), keys.whole("moe_intermediate_size", default=hidden),
               keys.flag("norm_topk_prob", True), keys.number("routed_scaling_factor", default=scale), "sigmoid",
               selection_bias=True, groups=keys.whole("n_group", default=groups[0]),
               groups_kept=keys.whole("topk_group", default=groups[1]))


def with_shared(keys: Keys, name: str, attention: Attention, moe: Moe, shared: int, dense: int,
                eps: float) -> ModelSpec:
    """The rest of DeepSeek's kind: shared experts, which are one wide one, and dense layers first; numbers are the
    family's defaults. Layers that predict further tokens, of which a key tells, take no part."""
    keys.only("moe_layer_freq", 1)
    for key in AHEAD:
        keys.whole(key, default=0)
    moe = replace(moe, shared_hidden=keys.whole("n_shared_experts", default=shared) * moe.hidden)
    first, width = keys.whole("first_k_dense_replace", default=dense), keys.whole("intermediate_size")
    return decoder(keys, name, attention, Dense(width, first) if first else None, moe, eps)


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


def sliding(keys: Keys) -> tuple[int, ...]:
    """The layers with a window: those that `layer_types` names, or else every other one from the first."""
    layers, known = min(keys.peek("num_hidden_layers"), MOST_LAYERS), ("sliding_attention", "full_attention")
    kinds = keys.items("layer_types") or [known[n % 2] for n in range(layers)]
    if len(kinds) != layers or any(kind not in known for kind in kinds):
        raise keys.wrong("layer_types", kinds, f"{layers} of {' and '.join(known)}")
    return tuple(n for n, kind in enumerate(kinds) if kind == known[0])


AHEAD = ("num_nextn_predict_layers", "num_mtp_layers")
"""Keys that say how many layers behind the last predict further tokens."""
GPT_OSS_STRETCH = {"rope_type": "yarn", "factor": 32.0, "truncate": False, "original_max_position_embeddings": 4096}
FAMILIES: Mapping[str, Family] = {
    "deepseek_v2": Family(deepseek_v2, LATENT | DEEPSEEK, (FUSED, ONE_QUERY), pairs_apart),
    "deepseek_v3": Family(deepseek_v3, LATENT | DEEPSEEK, (FUSED, ONE_QUERY), pairs_apart),
    "glm4_moe": Family(glm4_moe, GROUPED | DEEPSEEK),
    "gpt_oss": Family(gpt_oss, GPT_OSS, (), gate_rows_first),
    "mixtral": Family(mixtral, MIXTRAL),
    "olmoe": Family(olmoe, QWEN),
    "qwen2_moe": Family(qwen2_moe, QWEN),
    "qwen3_moe": Family(qwen3_moe, QWEN),
}
