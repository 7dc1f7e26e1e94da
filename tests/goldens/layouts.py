"""Other layouts of a checkpoint that transformers saved: those in which real ones come."""

import json

import torch
from safetensors.torch import load_file, save_file

BLOCK = 128
FOUR_BITS = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


def write(folder, config, tensors):
    """A checkpoint in one file."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors",
              metadata={"format": "pt"})


def fp8(folder, plain, generator):
    """Linear weights of the checkpoint become float8 with a scale for each block of 128 x 128, as DeepSeek-V3's;
    `plain` gets what they are worth, in float32."""
    config, tensors = json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")
    stored, worth = {}, {}
    for name, weight in tensors.items():
        if not name.endswith("proj.weight") and "kv_a_proj" not in name:
            stored[name], worth[name] = weight, weight.float()
            continue
        rows, columns = weight.shape
        scales = torch.zeros(-(-rows // BLOCK), -(-columns // BLOCK))
        for i in range(scales.shape[0]):
            for j in range(scales.shape[1]):
                scales[i, j] = weight[i * BLOCK:(i + 1) * BLOCK, j * BLOCK:(j + 1) * BLOCK].abs().max().float() / 448
        wide = scales.repeat_interleave(BLOCK, 0)[:rows].repeat_interleave(BLOCK, 1)[:, :columns]
        stored[name] = (weight.float() / wide).to(torch.float8_e4m3fn)
        stored[f"{name}_scale_inv"] = scales
        worth[name] = stored[name].float() * wide
    write(plain, config | {"dtype": "float32"}, worth)
    how = {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "weight_block_size": [BLOCK, BLOCK]}
    write(folder, config | {"quantization_config": how}, stored)


def mxfp4(folder, plain, generator):
    """Experts of the checkpoint are drawn anew as MXFP4, as GPT-OSS's: `[E, out, in / 32, 16]` pairs of 4 bits, the
    lower ones first, and an exponent for each 32; `plain` gets what they are worth, float32 `[E, in, out]`."""
    config, tensors = json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")
    stored, worth = {}, {}
    for name, weight in tensors.items():
        if not name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            stored[name], worth[name] = weight, weight.float()
            continue
        experts, width, rows = weight.shape
        bits = torch.randint(16, (experts, rows, width // 32, 32), generator=generator)
        scales = torch.randint(123, 126, (experts, rows, width // 32), generator=generator)
        stored[f"{name}_blocks"] = (bits[..., ::2] | bits[..., 1::2] << 4).to(torch.uint8)
        stored[f"{name}_scales"] = scales.to(torch.uint8)
        values = FOUR_BITS[bits] * torch.exp2(scales.float() - 127)[..., None]
        worth[name] = values.flatten(2).transpose(1, 2)
    write(plain, config | {"dtype": "float32"}, worth)
    write(folder, config | {"quantization_config": {
        "modules_to_not_convert": ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens",
                                   "lm_head"], "quant_method": "mxfp4"}}, stored)


def gpt_oss_hub(folder):
    """Write the config with the keys that gpt-oss-20b has on the hub, and no others."""
    config = json.loads((folder / "config.json").read_text())
    turns = config.pop("rope_parameters")
    config |= {"rope_theta": turns.pop("rope_theta"), "rope_scaling": turns, "eos_token_id": 319, "pad_token_id": 318,
               "experts_per_token": config["num_experts_per_tok"],
               "initial_context_length": turns["original_max_position_embeddings"]}
    for key in ("dtype", "swiglu_alpha", "bos_token_id"):
        config.pop(key)
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def hub_with_layer_ahead(source, folder, generator):
    """DeepSeek-V3 as on the hub: its keys, two files and an index, and one layer more, which predicts the next token
    but one."""
    config, tensors = json.loads((source / "config.json").read_text()), load_file(source / "model.safetensors")
    turns = config.pop("rope_parameters")
    config |= {"rope_theta": turns.pop("rope_theta"), "rope_scaling": {"type": turns.pop("rope_type")} | turns,
               "torch_dtype": config.pop("dtype"), "num_nextn_predict_layers": 1, "ep_size": 1, "moe_layer_freq": 1,
               "scoring_func": "sigmoid", "topk_method": "noaux_tc", "aux_loss_alpha": 0.001, "seq_aux": True,
               "auto_map": {"AutoConfig": "configuration_deepseek.DeepseekV3Config"}, "bos_token_id": 0}
    for key in ("head_dim", "qk_head_dim", "rope_interleave", "num_mtp_layers"):
        config.pop(key, None)
    layers = config["num_hidden_layers"]
    last = {name: tensor for name, tensor in tensors.items() if name.startswith(f"model.layers.{layers - 1}.")}
    more = {name.replace(f"layers.{layers - 1}.", f"layers.{layers}."): torch.zeros_like(tensor)
            for name, tensor in last.items()}
    width = config["hidden_size"]
    for name, shape in {"eh_proj.weight": (width, 2 * width), "enorm.weight": (width,), "hnorm.weight": (width,),
                        "embed_tokens.weight": (8, width), "shared_head.norm.weight": (width,),
                        "shared_head.head.weight": (8, width)}.items():
        more[f"model.layers.{layers}.{name}"] = torch.zeros(shape, dtype=torch.bfloat16)
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    index = {}
    for number, part in enumerate((tensors, more), start=1):
        name = f"model-0000{number}-of-00002.safetensors"
        save_file({key: tensor.contiguous() for key, tensor in part.items()}, folder / name, metadata={"format": "pt"})
        index |= dict.fromkeys(part, name)
    size = sum(t.numel() * t.element_size() for part in (tensors, more) for t in part.values())
    (folder / "model.safetensors.index.json").write_text(json.dumps(
        {"metadata": {"total_size": size}, "weight_map": index}, indent=2, sort_keys=True) + "\n")
