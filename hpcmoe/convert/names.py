"""What each family calls a tensor of ours.

A tensor of ours is one of theirs, or several one below the other (`qkv` is q, k and v). `{n}` stands for the
layer, `{e}` for the expert; a name with `[e]` is one tensor for all experts, cut along its first dimension, and one
with `[e].T` has each expert's matrix as `[in, out]`.
"""

import numpy as np

from hpcmoe.spec import ModelSpec, Tensor

Names = dict[str, tuple[str, ...]]
LAYER = "model.layers.{n}"


def swiglu_names(kind: str, at: str) -> Names:
    """A feed-forward block of ours, `kind`, that is theirs at `at`."""
    return {f"{kind}/gate_up": (f"{at}.gate_proj.weight", f"{at}.up_proj.weight"),
            f"{kind}/down": (f"{at}.down_proj.weight",)}


DECODER: Names = {
    "embedding": ("model.embed_tokens.weight",),
    "norm": ("model.norm.weight",),
    "head": ("lm_head.weight",),
    "attention_norm": (f"{LAYER}.input_layernorm.weight",),
    "attention/o": (f"{LAYER}.self_attn.o_proj.weight",),
    "ffn_norm": (f"{LAYER}.post_attention_layernorm.weight",),
}
GROUPED: Names = DECODER | {
    "attention/qkv": tuple(f"{LAYER}.self_attn.{p}_proj.weight" for p in "qkv"),
    "attention/qkv_bias": tuple(f"{LAYER}.self_attn.{p}_proj.bias" for p in "qkv"),
    "attention/q_norm": (f"{LAYER}.self_attn.q_norm.weight",),
    "attention/k_norm": (f"{LAYER}.self_attn.k_norm.weight",),
    "attention/o_bias": (f"{LAYER}.self_attn.o_proj.bias",),
    "attention/sinks": (f"{LAYER}.self_attn.sinks",),
}
LATENT: Names = DECODER | {
    "attention/q_a": (f"{LAYER}.self_attn.q_a_proj.weight",),
    "attention/q_a_norm": (f"{LAYER}.self_attn.q_a_layernorm.weight",),
    "attention/q": (f"{LAYER}.self_attn.q_b_proj.weight",),
    "attention/kv_a": (f"{LAYER}.self_attn.kv_a_proj_with_mqa.weight",),
    "attention/kv_a_norm": (f"{LAYER}.self_attn.kv_a_layernorm.weight",),
    "attention/kv_b": (f"{LAYER}.self_attn.kv_b_proj.weight",),
}
ONE_QUERY: Names = {"attention/q": (f"{LAYER}.self_attn.q_proj.weight",)}
"""Another name of the same tensor, where queries have no latent."""
MLP: Names = (swiglu_names("dense", f"{LAYER}.mlp") | swiglu_names("experts", f"{LAYER}.mlp.experts.{{e}}") | {
    "gate": (f"{LAYER}.mlp.gate.weight",)})
QWEN: Names = GROUPED | MLP | swiglu_names("shared", f"{LAYER}.mlp.shared_expert") | {
    "shared_gate": (f"{LAYER}.mlp.shared_expert_gate.weight",)}
DEEPSEEK: Names = MLP | swiglu_names("shared", f"{LAYER}.mlp.shared_experts") | {
    "gate_bias": (f"{LAYER}.mlp.gate.e_score_correction_bias",)}
MIXTRAL: Names = GROUPED | {
    "gate": (f"{LAYER}.block_sparse_moe.gate.weight",),
    "experts/gate_up": (f"{LAYER}.block_sparse_moe.experts.{{e}}.w1.weight",
                        f"{LAYER}.block_sparse_moe.experts.{{e}}.w3.weight"),
    "experts/down": (f"{LAYER}.block_sparse_moe.experts.{{e}}.w2.weight",),
}
GPT_OSS: Names = GROUPED | {
    "gate": (f"{LAYER}.mlp.router.weight",),
    "logit_bias": (f"{LAYER}.mlp.router.bias",),
    "experts/gate_up": (f"{LAYER}.mlp.experts.gate_up_proj[e].T",),
    "experts/gate_up_bias": (f"{LAYER}.mlp.experts.gate_up_proj_bias[e]",),
    "experts/down": (f"{LAYER}.mlp.experts.down_proj[e].T",),
    "experts/down_bias": (f"{LAYER}.mlp.experts.down_proj_bias[e]",),
}
FUSED: Names = {
    "gate": (f"{LAYER}.mlp.gate.weight",),
    "experts/gate_up": (f"{LAYER}.mlp.experts.gate_up_proj[e]",),
    "experts/down": (f"{LAYER}.mlp.experts.down_proj[e]",),
}


def pairs_apart(model: ModelSpec, tensor: Tensor) -> np.ndarray | None:
    """`[out]`: in which order our rows are among theirs, where they have the two values of a rotary pair side by side;
    ours are in the two halves of what turns. None where the order is the same."""
    latent = model.attention.latent
    if latent is None or tensor.kind not in ("attention/q", "attention/kv_a"):
        return None
    rows = np.arange(tensor.shape[0]).reshape(model.attention.heads if tensor.kind == "attention/q" else 1, -1)
    still, turning = np.split(rows, [rows.shape[1] - latent.rotary_dim], axis=1)
    return np.concatenate([still, turning[:, ::2], turning[:, 1::2]], axis=1).ravel()


def gate_rows_first(model: ModelSpec, tensor: Tensor) -> np.ndarray | None:
    """The same where they have gate and up rows in turn."""
    if tensor.kind not in ("experts/gate_up", "experts/gate_up_bias"):
        return None
    rows = np.arange(tensor.shape[0])
    return np.concatenate([rows[::2], rows[1::2]])
