"""Other layouts of checkpoints: quantised weights, layers that predict ahead, families with names of their own."""

import json
import shutil
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
from helpers import GOLDENS, assert_same_tensors, converted, read_tensors, refused, tensors_of
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from hpcmoe.convert import stored
from hpcmoe.convert.checkpoint import open_checkpoint
from hpcmoe.files.model import ModelFile
from hpcmoe.spec import tensors

FLOAT8 = ml_dtypes.float8_e4m3fn


@pytest.mark.parametrize("base, other", [("deepseek_v3", "deepseek_v3_fused"), ("deepseek_v3", "deepseek_v3_hub"),
                                         ("glm4_moe", "glm4_moe_fused")])
def test_other_layouts_give_the_same_tensors(base, other, tmp_path):
    (tmp_path / "a").mkdir()
    one, two = converted(GOLDENS / base, tmp_path / "a"), converted(GOLDENS / other, tmp_path)
    assert_same_tensors(one, two)
    assert replace(one.spec, name="") == replace(two.spec, name="")


def test_layers_that_predict_ahead_are_left_out_with_a_note(capsys, tmp_path):
    converted(GOLDENS / "deepseek_v3_hub", tmp_path)
    assert capsys.readouterr().err.count("model.layers.3 of ") == 1


def change_config(folder, **keys):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


@pytest.fixture
def copy(tmp_path):
    """family -> a copy of its checkpoint, to be changed."""
    return lambda family: shutil.copytree(GOLDENS / family, tmp_path / family)


@pytest.mark.parametrize("family, keys, words", [
    ("deepseek_v3_hub", {"num_nextn_predict_layers": 0}, ["model.layers.3.", "is not known"]),
    ("deepseek_v3", {"rope_interleave": False}, ["rope_interleave"]),
    ("deepseek_v3", {"attention_bias": True}, ["attention_bias"]),
    ("deepseek_v3", {"num_key_value_heads": 2}, ["num_key_value_heads"]),
    ("deepseek_v3", {"scoring_func": "softmax"}, ["scoring_func"]),
    ("deepseek_v3", {"moe_layer_freq": 2}, ["moe_layer_freq"]),
    ("deepseek_v3", {"topk_group": 5}, ["groups_kept"]),
    ("deepseek_v2", {"norm_topk_prob": True}, ["norm_topk_prob"]),
    ("deepseek_v2", {"topk_method": "noaux_tc"}, ["topk_method", "greedy"]),
    ("deepseek_v2", {"rope_parameters": {"rope_type": "longrope", "factor": 4.0}}, ["rope_type", "yarn"]),
    ("deepseek_v2", {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "turns": 3}}, ["turns"]),
    ("glm4_moe", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, ["rope_parameters", "contradict"]),
    ("glm4_moe", {"partial_rotary_factor": 0.1}, ["should be 0.5", "partial_rotary_factor"]),
    ("gpt_oss", {"swiglu_alpha": 1.0}, ["swiglu_alpha"]),
    ("gpt_oss", {"layer_types": ["full_attention"]}, ["layer_types"]),
    ("gpt_oss", {"layer_types": ["chunked_attention"] * 4}, ["layer_types"]),
])
def test_keys_that_it_does_not_compute_are_refused_by_name(family, keys, words, copy):
    folder = copy(family)
    change_config(folder, **keys)
    said = refused(folder)
    assert all(word in said for word in words), said


def test_the_bias_of_the_choice_stays_float32(tmp_path):
    found = tensors_of(converted(GOLDENS / "deepseek_v3", tmp_path, "bfloat16").path)
    theirs = load_file(GOLDENS / "deepseek_v3" / "model.safetensors")
    bias = theirs["model.layers.1.mlp.gate.e_score_correction_bias"]
    assert bias.dtype == np.float32 and (bias.astype(ml_dtypes.bfloat16) != bias).any()
    np.testing.assert_array_equal(found["layers/001/gate_bias"], bias)


def test_experts_of_gpt_oss_have_their_gate_rows_first(tmp_path):
    ours = tensors_of(converted(GOLDENS / "gpt_oss", tmp_path).path)
    theirs = {n: v.astype(np.float32) for n, v in load_file(GOLDENS / "gpt_oss" / "model.safetensors").items()}
    at, name = "model.layers.2.mlp.experts", "layers/002/experts/005"
    for mine, its in (("gate_up", theirs[f"{at}.gate_up_proj"][5].T),
                      ("gate_up_bias", theirs[f"{at}.gate_up_proj_bias"][5])):
        np.testing.assert_array_equal(ours[f"{name}/{mine}"], np.concatenate([its[::2], its[1::2]]))
    np.testing.assert_array_equal(ours[f"{name}/down"], theirs[f"{at}.down_proj"][5].T)


def test_rotary_pairs_of_deepseek_are_taken_apart(tmp_path):
    ours = tensors_of(converted(GOLDENS / "deepseek_v3", tmp_path).path)
    theirs = load_file(GOLDENS / "deepseek_v3" / "model.safetensors")
    query = theirs["model.layers.0.self_attn.q_b_proj.weight"].astype(np.float32).reshape(4, 32, 24)
    want = np.concatenate([query[:, :20], query[:, 20::2], query[:, 21::2]], axis=1)
    np.testing.assert_array_equal(ours["layers/000/attention/q"], want.reshape(128, 24))
    key = theirs["model.layers.0.self_attn.kv_a_proj_with_mqa.weight"].astype(np.float32)
    np.testing.assert_array_equal(ours["layers/000/attention/kv_a"], np.concatenate([key[:28], key[28::2], key[29::2]]))


def file_of(folder, **found):
    save_file(found, folder / "t.safetensors")
    return stored.open_all([folder / "t.safetensors"])


@given(rows=st.integers(1, 9), columns=st.integers(1, 9), high=st.integers(1, 5), wide=st.integers(1, 5),
       seed=st.integers(0, 99))
def test_float8_is_worth_its_value_times_the_scale_of_its_block(tmp_path_factory, rows, columns, high, wide, seed):
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((rows, columns)).astype(FLOAT8)
    scales = rng.random((-(-rows // high), -(-columns // wide)), np.float32)
    found = file_of(tmp_path_factory.mktemp("t"), v=values, s=scales)
    part = stored.Part(found["v"], found["s"], (high, wide))
    want = [[float(values[i, j]) * scales[i // high, j // wide] for j in range(columns)] for i in range(rows)]
    for size in (1, 4, 1 << 20):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("hpcmoe.files.model.BLOCK", size)
            np.testing.assert_allclose(np.concatenate(list(part.blocks())), want, rtol=1e-7)


def four_bits(bits: int) -> float:
    """E2M1: a sign, two bits of an exponent, one of a mantissa."""
    sign, exponent, mantissa = bits >> 3, bits >> 1 & 3, bits & 1
    size = mantissa / 2 if exponent == 0 else (1 + mantissa / 2) * 2.0 ** (exponent - 1)
    return -size if sign else size


@given(experts=st.integers(1, 3), rows=st.integers(1, 4), groups=st.integers(1, 3), seed=st.integers(0, 99))
def test_mxfp4_is_worth_four_bits_times_a_power_of_two(tmp_path_factory, experts, rows, groups, seed):
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (experts, rows, groups, 16), np.uint8)
    scales = rng.integers(100, 140, (experts, rows, groups), np.uint8)
    found = file_of(tmp_path_factory.mktemp("t"), v=blocks, s=scales)
    for e in range(experts):
        part = stored.Part(found["v"], found["s"], expert=e)
        want = [[four_bits(int(blocks[e, i, j // 32, j % 32 // 2]) >> 4 * (j % 2) & 15)
                 * 2.0 ** (int(scales[e, i, j // 32]) - 127) for j in range(32 * groups)] for i in range(rows)]
        assert part.shape == (rows, 32 * groups)
        np.testing.assert_array_equal(np.concatenate(list(part.blocks())), want)


def change(folder, do):
    """Lets `do` change the tensors of MXFP4's checkpoint, which NumPy can hold."""
    found = load_file(folder / "model.safetensors")
    do(found)
    save_file(found, folder / "model.safetensors")


SCALES = "model.layers.0.mlp.experts.down_proj_scales"


@pytest.mark.parametrize("do, words", [
    (lambda t: t.pop(SCALES), [SCALES, "no file has"]),
    (lambda t: t.update({SCALES: t[SCALES][:, :-1]}), [SCALES, "should be"]),
    (lambda t: t.update({SCALES: t[SCALES].astype(np.float32)}), [SCALES, "F32"]),
    (lambda t: t.update({"model.layers.0.mlp.experts.down_proj_blocks": np.zeros((8, 64, 16), np.uint8)}),
     ["down_proj_blocks", "should be"]),
    (lambda t: t.update({SCALES: np.full_like(t[SCALES], 255)}), ["down_proj_blocks", "too large"]),
])
def test_scales_that_do_not_fit_are_refused_by_name(do, words, copy):
    folder = copy("gpt_oss_mxfp4")
    change(folder, do)
    said = refused(folder)
    assert all(word in said for word in words), said


@pytest.mark.parametrize("family, table, words", [
    ("deepseek_v3_fp8", None, ["F8_E4M3", "config.json says how"]),
    ("deepseek_v3_fp8", {"quant_method": "awq"}, ["quant_method", "awq"]),
    ("deepseek_v3_fp8", {"quant_method": "fp8", "weight_block_size": [64, 128]}, ["weight_scale_inv", "should be"]),
    ("deepseek_v3_fp8", {"quant_method": "fp8", "weight_block_size": [64]}, ["weight_block_size"]),
    ("deepseek_v3_fp8", {"quant_method": "fp8", "weight_block_size": [128, 128], "fmt": "e5m2"}, ["fmt", "e5m2"]),
    ("gpt_oss_mxfp4", None, ["gate_up_proj"]),
    ("gpt_oss_mxfp4", [1], ["quantization_config"]),
])
def test_other_quantisations_are_refused(family, table, words, copy):
    folder = copy(family)
    change_config(folder, quantization_config=table)
    said = refused(folder)
    assert all(word in said for word in words), said


@pytest.mark.parametrize("family", ["deepseek_v3_fp8", "gpt_oss_mxfp4", "gpt_oss", "deepseek_v2_lite"])
def test_what_is_converted_is_what_was_read(family, tmp_path):
    source = open_checkpoint(GOLDENS / family)
    assert_same_tensors(source, converted(GOLDENS / family, tmp_path))
    found = ModelFile(tmp_path / "m.h5")
    assert found.spec == source.spec and len(read_tensors(source)) == len(list(tensors(found.spec)))
