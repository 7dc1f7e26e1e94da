"""Checkpoints with DeepSeek-V3's names, shapes and number formats, and zeros for weights, which take no space."""

import json
from collections.abc import Iterator
from math import prod
from pathlib import Path

H, NARROW, WIDE, HEADS, QUERY, LATENT, TURNED, NOPE = 7168, 2048, 18432, 128, 1536, 512, 64, 128
BYTES = {"BF16": 2, "F32": 4, "F8_E4M3": 1}
SHARD = 4_300_000_000
"""Bytes of a file, about."""
Tensors = Iterator[tuple[str, str, tuple[int, ...]]]
"""name, number format, shape"""


def config(layers: int, dense: int, experts: int, vocabulary: int, ahead: int) -> dict:
    """config.json, as the checkpoint has it."""
    return {
        "model_type": "deepseek_v3", "architectures": ["DeepseekV3ForCausalLM"], "attention_bias": False,
        "attention_dropout": 0.0, "bos_token_id": 0, "eos_token_id": 1, "ep_size": 1, "first_k_dense_replace": dense,
        "hidden_act": "silu", "hidden_size": H, "initializer_range": 0.02, "intermediate_size": WIDE,
        "kv_lora_rank": LATENT, "max_position_embeddings": 163840, "moe_intermediate_size": NARROW, "moe_layer_freq": 1,
        "n_group": 8, "n_routed_experts": experts, "n_shared_experts": 1, "norm_topk_prob": True,
        "num_attention_heads": HEADS, "num_experts_per_tok": 8, "num_hidden_layers": layers,
        "num_key_value_heads": HEADS, "num_nextn_predict_layers": ahead, "q_lora_rank": QUERY,
        "qk_nope_head_dim": NOPE, "qk_rope_head_dim": TURNED, "quantization_config": {
            "activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "weight_block_size": [128, 128]},
        "rms_norm_eps": 1e-06, "rope_scaling": {
            "beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 1.0, "mscale_all_dim": 1.0,
            "original_max_position_embeddings": 4096, "type": "yarn"},
        "rope_theta": 10000, "routed_scaling_factor": 2.5, "scoring_func": "sigmoid", "tie_word_embeddings": False,
        "topk_group": 4, "topk_method": "noaux_tc", "torch_dtype": "bfloat16", "transformers_version": "4.33.1",
        "use_cache": True, "v_head_dim": NOPE, "vocab_size": vocabulary}


def tensors(layers: int, dense: int, experts: int, vocabulary: int, ahead: int) -> Tensors:
    """All that the files hold."""
    yield "model.embed_tokens.weight", "BF16", (vocabulary, H)
    for n in range(layers + ahead):
        yield from _layer(f"model.layers.{n}", 0 if n < dense else experts)
    yield "model.norm.weight", "BF16", (H,)
    yield "lm_head.weight", "BF16", (vocabulary, H)


def _layer(at: str, experts: int) -> Tensors:
    for name, width in ("input_layernorm", H), ("post_attention_layernorm", H), ("self_attn.q_a_layernorm", QUERY), (
            "self_attn.kv_a_layernorm", LATENT):
        yield f"{at}.{name}.weight", "BF16", (width,)
    for name, rows, columns in ("q_a", QUERY, H), ("q_b", HEADS * (NOPE + TURNED), QUERY), (
            "kv_b", HEADS * 2 * NOPE, LATENT), ("o", H, HEADS * NOPE):
        yield from _float8(f"{at}.self_attn.{name}_proj", rows, columns)
    yield from _float8(f"{at}.self_attn.kv_a_proj_with_mqa", LATENT + TURNED, H)
    if not experts:
        yield from _swiglu(f"{at}.mlp", WIDE)
        return
    yield f"{at}.mlp.gate.weight", "BF16", (experts, H)
    yield f"{at}.mlp.gate.e_score_correction_bias", "F32", (experts,)
    yield from _swiglu(f"{at}.mlp.shared_experts", NARROW)
    for e in range(experts):
        yield from _swiglu(f"{at}.mlp.experts.{e}", NARROW)


def _swiglu(at: str, width: int) -> Tensors:
    for name, rows, columns in ("gate", width, H), ("up", width, H), ("down", H, width):
        yield from _float8(f"{at}.{name}_proj", rows, columns)


def _float8(at: str, rows: int, columns: int) -> Tensors:
    yield f"{at}.weight", "F8_E4M3", (rows, columns)
    yield f"{at}.weight_scale_inv", "F32", (-(-rows // 128), -(-columns // 128))


def write(folder: Path, layers: int = 61, dense: int = 3, experts: int = 256, vocabulary: int = 129280,
          ahead: int = 1) -> tuple[int, int, int]:
    """A checkpoint; how many files, tensors and bytes it has."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config(layers, dense, experts, vocabulary, ahead)))
    header: dict[str, dict] = {}
    at, files, count, total = 0, 0, 0, 0

    def close() -> None:
        nonlocal at, files, total
        text = json.dumps(header).encode()
        with (folder / f"model-{files:05d}.safetensors").open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.truncate(8 + len(text) + at)
        files, total, at = files + 1, total + at, 0
        header.clear()

    for name, kind, shape in tensors(layers, dense, experts, vocabulary, ahead):
        size = BYTES[kind] * prod(shape)
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [at, at + size]}
        at, count = at + size, count + 1
        if at >= SHARD:
            close()
    close()
    return files, count, total
