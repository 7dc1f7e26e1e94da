"""Make one folder per model family: a tiny random checkpoint, and what transformers computes with it.

    python tests/goldens/make_families.py [family ...]

Every weight is rounded to bfloat16 first, so that the float32 and the bfloat16 run share one file. Experts
run as "grouped_mm", which sums the K slots of a token in float32 and rounds once, and attention as "eager".
"""

import json
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers
from layouts import fp8, gpt_oss_hub, hub_with_layer_ahead, mxfp4
from routers import Routers
from transformers import (
    AutoModelForCausalLM,
    DeepseekV2Config,
    DeepseekV3Config,
    Glm4MoeConfig,
    GptOssConfig,
    MixtralConfig,
    OlmoeConfig,
    Qwen2MoeConfig,
    Qwen3MoeConfig,
)

HERE = Path(__file__).resolve().parent
LENGTHS = (1, 2, 5, 9, 17, 33)
NEW_TOKENS = 12
MIN_GAP = 1e-3  # between the best and the second logit at every greedy choice
MIN_ROUTER_GAP = 1e-4  # between the last chosen and the first rejected router logit, relative, float32
BF16_STEP = 2.0 ** -7  # the same in bfloat16: more than one rounding step apart
FP32_GATE_STEP = 1e-3  # the same where gates are float32 in bfloat16 too, between the scores that decide
COMMON = {
    "vocab_size": 320, "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
    "max_position_embeddings": 128, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
}


def rope(theta):
    """RoPE entry of a config."""
    return {"rope_type": "default", "rope_theta": theta}


def yarn(**more):
    """The same, stretched four times from a context that prompts pass."""
    return {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 16,
            "beta_fast": 32.0, "beta_slow": 1.0} | more


def families():
    """Config of every family. OLMoE has narrow experts, so that 16 of them stay small."""
    mixtral = COMMON | {"num_key_value_heads": 2, "intermediate_size": 32, "num_local_experts": 8,
                        "num_experts_per_tok": 2}
    deepseek = COMMON | {"num_key_value_heads": 4, "qk_nope_head_dim": 20, "qk_rope_head_dim": 12, "v_head_dim": 16,
                         "kv_lora_rank": 28, "intermediate_size": 48, "moe_intermediate_size": 16,
                         "n_routed_experts": 16, "num_experts_per_tok": 4, "first_k_dense_replace": 1}
    glm = COMMON | {"num_key_value_heads": 2, "head_dim": 24, "intermediate_size": 48, "moe_intermediate_size": 24,
                    "n_routed_experts": 8, "num_experts_per_tok": 2, "n_shared_experts": 1, "n_group": 1,
                    "topk_group": 1, "first_k_dense_replace": 1, "rope_parameters": rope(10000.0)}
    gpt_oss = COMMON | {"num_hidden_layers": 4, "num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 32,
                        "num_local_experts": 8, "num_experts_per_tok": 3, "sliding_window": 6, "swiglu_limit": 1.5,
                        "rope_parameters": yarn(truncate=False)}
    ramp = {"rope_theta": 150.0, "original_max_position_embeddings": 32, "beta_fast": 4.0, "beta_slow": 0.5}
    qwen2 = COMMON | {"moe_intermediate_size": 32, "num_experts": 8, "num_experts_per_tok": 2}
    return {
        "mixtral": MixtralConfig(**mixtral, rope_parameters=rope(10000.0)),
        "mixtral_window": MixtralConfig(**mixtral, sliding_window=6),
        # Dense: layer 2 by mlp_only_layers, 0 and 4 by decoder_sparse_step; experts in 1 and 3.
        "qwen2_moe": Qwen2MoeConfig(**qwen2 | {
            "num_hidden_layers": 5, "num_key_value_heads": 2, "intermediate_size": 48, "qkv_bias": True,
            "shared_expert_intermediate_size": 40, "mlp_only_layers": [2], "decoder_sparse_step": 2,
            "norm_topk_prob": False, "rope_parameters": rope(50000.0)}),
        "qwen3_moe": Qwen3MoeConfig(**COMMON | {
            "num_key_value_heads": 2, "head_dim": 24, "intermediate_size": 48, "moe_intermediate_size": 32,
            "num_experts": 8, "num_experts_per_tok": 3, "norm_topk_prob": True, "tie_word_embeddings": True,
            "rope_parameters": rope(1000000.0)}),
        "olmoe": OlmoeConfig(**COMMON | {
            "num_key_value_heads": 4, "intermediate_size": 16, "num_experts": 16, "num_experts_per_tok": 4,
            "clip_qkv": 1.25, "norm_topk_prob": False}),
        "seedlike": Qwen2MoeConfig(**qwen2 | {
            "num_hidden_layers": 5, "num_key_value_heads": 4, "head_dim": 20, "intermediate_size": 48,
            "qkv_bias": False, "shared_expert_intermediate_size": 16, "mlp_only_layers": [0, 1, 2],
            "norm_topk_prob": True, "rope_parameters": rope(20000.0)}),
        "deepseek_v2": DeepseekV2Config(**deepseek | {
            "q_lora_rank": 24, "topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2,
            "routed_scaling_factor": 1.7, "n_shared_experts": 2,
            "rope_parameters": yarn(mscale=0.7, mscale_all_dim=0.9)}),
        "deepseek_v2_lite": DeepseekV2Config(**deepseek | {
            "q_lora_rank": None, "topk_method": "greedy", "n_shared_experts": 1, "first_k_dense_replace": 0,
            "rope_parameters": rope(10000.0)}),
        "deepseek_v3": DeepseekV3Config(**deepseek | {
            "q_lora_rank": 24, "n_group": 4, "topk_group": 2, "norm_topk_prob": True, "n_shared_experts": 2,
            "routed_scaling_factor": 2.5, "rope_parameters": yarn(mscale=1.0, mscale_all_dim=0.7)}),
        # 160 and 144 are more than a block of 128, and not whole ones.
        "deepseek_v3_fp8": DeepseekV3Config(**deepseek | {
            "hidden_size": 160, "intermediate_size": 144, "num_hidden_layers": 2, "q_lora_rank": 24, "n_group": 1,
            "topk_group": 1, "norm_topk_prob": True, "n_shared_experts": 1, "routed_scaling_factor": 1.0,
            "rope_parameters": rope(10000.0)}),
        "glm4_moe": Glm4MoeConfig(**glm | {"use_qk_norm": True, "attention_bias": True, "norm_topk_prob": True,
                                           "routed_scaling_factor": 1.5}),
        "glm4_moe_plain": Glm4MoeConfig(**glm | {"use_qk_norm": False, "attention_bias": False, "num_hidden_layers": 2,
                                                 "norm_topk_prob": False}),
        "gpt_oss": GptOssConfig(**gpt_oss),
        "gpt_oss_mxfp4": GptOssConfig(**gpt_oss | {"num_hidden_layers": 2}),
        # Of the frequencies of those above YaRN keeps the first and divides the others; here three lie between.
        "deepseek_v3_yarn": DeepseekV3Config(**deepseek | {
            "num_hidden_layers": 2, "q_lora_rank": 24, "qk_rope_head_dim": 16, "n_routed_experts": 8,
            "num_experts_per_tok": 2, "n_group": 2, "topk_group": 1, "norm_topk_prob": True, "n_shared_experts": 1,
            "routed_scaling_factor": 2.5, "rope_parameters": yarn(**ramp, mscale=0.8, mscale_all_dim=1.0)}),
        "gpt_oss_yarn": GptOssConfig(**gpt_oss | {"num_hidden_layers": 2,
                                                  "rope_parameters": yarn(**ramp, truncate=False)}),
    }


def fill(model, generator, zero_shared):
    """Random weights: spread routing, attention that is not flat, logits with a std of about 1."""
    for name, weight in model.named_parameters():
        noise = torch.randn(weight.shape, generator=generator)
        if name.endswith("norm.weight"):
            value = 1 + 0.2 * noise
        elif name.endswith(("bias", "sinks")):
            value = 0.3 * noise
        elif "embed_tokens" in name:
            value = noise * (weight.shape[1] ** -0.5 if model.config.tie_word_embeddings else 1.0)
        elif zero_shared and name.endswith("shared_expert.down_proj.weight"):
            value = torch.zeros_like(noise)
        else:
            gain = 1.0 if "lm_head" in name else 1.5
            turned = model.config.model_type == "gpt_oss" and "experts" in name
            value = noise * gain * weight.shape[-2 if turned else -1] ** -0.5
        weight.copy_(value)


def fill_choice(model, generator):
    """Biases of the choice of experts, which stay float32, and are no bfloat16 values."""
    for module in model.modules():
        if hasattr(module, "e_score_correction_bias"):
            module.e_score_correction_bias = 0.2 * torch.randn(module.num_experts, generator=generator)


def save(model, folder, **options):
    """Save config.json and safetensors, nothing else, in a fresh folder."""
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder, **options)
    (folder / "generation_config.json").unlink(missing_ok=True)


def use_hub_keys(folder):
    """Write the config the way older releases, and so most checkpoints on the hub, name its keys."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["rope_theta"] = config.pop("rope_parameters")["rope_theta"]
    config["torch_dtype"] = config.pop("dtype")
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def load(folder, dtype):
    """The saved checkpoint, in the arithmetic the goldens stand for."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager")
    model.set_experts_implementation("grouped_mm")
    return model.eval()


def run_cached(model, prompt, forced=None):
    """Prefill, then 12 decode steps through the KV cache, greedy or along the forced tokens.

    Returns the tokens after all logits ([n + 12, vocab]: the n rows of the prefill, then one for each token).
    """
    step, cache, rows, tokens = torch.tensor([prompt]), None, [], []
    for index in range(NEW_TOKENS + 1):
        out = model(step, past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        rows.append(out.logits[0])
        if index < NEW_TOKENS:
            tokens.append(int(rows[-1][-1].argmax()) if forced is None else forced[index])
            step = torch.tensor([tokens[-1:]])
    return torch.cat(rows), tokens


def greedy_gap(logits):
    """Smallest gap between best and second logit over the 12 greedy choices."""
    best, second = logits[-NEW_TOKENS - 1:-1].topk(2, dim=-1).values.unbind(-1)
    return float((best - second).min())


def bits(logits):
    """Bit patterns of bfloat16 values, as NumPy has no such type."""
    return logits.contiguous().view(torch.uint16).numpy()


def golden_prompt(models, routers, prompt):
    """Arrays of one prompt, or None where a choice (token or expert) is too close to call."""
    (model32, model16), (router32, router16) = models, routers
    for router in routers:
        router.reset()
    logits32, tokens = run_cached(model32, prompt)
    if greedy_gap(logits32) < MIN_GAP or router32.min_gap < MIN_ROUTER_GAP:
        return None
    experts = router32.experts[0]
    whole32 = model32(torch.tensor([prompt + tokens])).logits[0]
    torch.testing.assert_close(logits32, whole32, rtol=1e-4, atol=1e-4)
    whole16 = model16(torch.tensor([prompt + tokens])).logits[0]
    step = FP32_GATE_STEP if router16.wide else BF16_STEP
    if router16.min_gap <= step:
        return None
    logits16, _ = run_cached(model16, prompt, tokens)
    if router16.min_gap <= step:
        return None
    arrays = {"logits32": logits32.numpy(), "tokens": np.array(tokens, np.int32),
              "logits16": bits(logits16), "whole16": bits(whole16)}
    return arrays, experts


def make_golden(folder, generator, weights=None):
    """Write golden.npz next to the checkpoint; a prompt with a near tie is drawn again.

    `weights` is the folder with the weights to run, where they are not those next to it.
    """
    models = load(weights or folder, torch.float32), load(weights or folder, torch.bfloat16)
    routers = [Routers(model) for model in models]
    golden, prompts = {}, []
    for index, length in enumerate(LENGTHS):
        found = None
        while found is None:
            prompt = torch.randint(COMMON["vocab_size"], (length,), generator=generator).tolist()
            found = golden_prompt(models, routers, prompt)
        prompts.append(prompt)
        golden |= {f"{name}_{index}": array for name, array in found[0].items()}
    golden["experts_layer"] = found[1]
    golden["prompts"] = np.concatenate(prompts).astype(np.int32)
    golden["offsets"] = np.cumsum((0, *LENGTHS)).astype(np.int32)
    np.savez_compressed(folder / "golden.npz", **golden)
    report(folder.name, golden)


def report(name, golden):
    """One line: the logits' std, how far bfloat16 is off, and how evenly the experts are used."""
    last = len(LENGTHS) - 1
    logits32 = golden[f"logits32_{last}"]
    logits16 = torch.from_numpy(golden[f"logits16_{last}"]).view(torch.bfloat16).float().numpy()
    counts = np.bincount(golden["experts_layer"].ravel())
    error = np.abs(logits16 - logits32).mean()
    print(f"{name}: std {logits32.std():.2f}, bfloat16 off by {error:.3f}, rows per expert {counts.tolist()}")


@torch.inference_mode()
def make_family(name, seed, config):
    """Checkpoint and golden of one family; Mixtral's also in two other layouts."""
    generator = torch.Generator().manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config)
    fill(model, generator, zero_shared=name == "seedlike")
    model.to(torch.bfloat16)
    fill_choice(model, generator)
    save(model, HERE / name)
    if name in QUANTISED:
        with tempfile.TemporaryDirectory() as plain:
            QUANTISED[name](HERE / name, Path(plain), generator)
            make_golden(HERE / name, generator, Path(plain))
        return
    if name == "gpt_oss_yarn":
        gpt_oss_hub(HERE / name)
    make_golden(HERE / name, generator)
    if name == "deepseek_v3":
        hub_with_layer_ahead(HERE / name, HERE / "deepseek_v3_hub", generator)
    if name in ("deepseek_v3", "glm4_moe"):
        save(model, HERE / f"{name}_fused", save_original_format=False)
    if name == "mixtral":
        save(model, HERE / "mixtral_sharded", max_shard_size="170KB")
        use_hub_keys(HERE / "mixtral_sharded")
        save(model, HERE / "mixtral_fused", save_original_format=False)


QUANTISED = {"deepseek_v3_fp8": fp8, "gpt_oss_mxfp4": mxfp4}


def main():
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    wanted = sys.argv[1:]
    for seed, (name, config) in enumerate(families().items(), start=1):
        if not wanted or name in wanted:
            make_family(name, seed, config)


if __name__ == "__main__":
    main()
