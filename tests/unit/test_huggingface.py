"""Checkpoints of Hugging Face: what is read gives the same tensors, and what is not understood is refused by name."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from helpers import (
    GOLDENS,
    assert_one_line,
    assert_same_tensors,
    byte_tokenizer,
    command,
    converted,
    read_tensors,
    refused,
    tensors_of,
)
from safetensors.numpy import load_file, save_file

from hpcmoe.convert.checkpoint import open_checkpoint
from hpcmoe.errors import InputError
from hpcmoe.files import model
from hpcmoe.files.tokenizer import Tokenizer
from hpcmoe.spec import Attention

MIXTRAL = GOLDENS / "mixtral"


class TestHuggingFace:
    """Folders with config.json and safetensors files."""

    @pytest.fixture
    def folder(self, tmp_path):
        """A copy of the Mixtral checkpoint, to be changed; its values are floats of 32 bits."""
        shutil.copytree(MIXTRAL, tmp_path / "mixtral")
        file = tmp_path / "mixtral" / "model.safetensors"
        save_file({n: v.astype(np.float32) for n, v in load_file(file).items()}, file)
        return tmp_path / "mixtral"

    def config(self, folder, **keys):
        """Changes keys of config.json; a key of value `...` is taken out."""
        path = folder / "config.json"
        table = json.loads(path.read_text()) | keys
        path.write_text(json.dumps({k: v for k, v in table.items() if v is not ...}))

    def tensors(self, folder, change: Callable[[dict], object]):
        """Lets `change` do something to the tensors."""
        found = load_file(folder / "model.safetensors")
        change(found)
        save_file(found, folder / "model.safetensors")

    @pytest.mark.parametrize("other", ["mixtral_sharded", "mixtral_fused"])
    @pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
    def test_shards_and_fused_tensors_give_the_same_tensors(self, other, dtype, tmp_path):
        (tmp_path / "a").mkdir()
        one, two = converted(MIXTRAL, tmp_path / "a", dtype), converted(GOLDENS / other, tmp_path, dtype)
        assert_same_tensors(one, two)
        assert replace(one.spec, name="") == replace(two.spec, name="")

    def test_tensors_are_where_they_belong(self, tmp_path):
        """One of each kind, against the names of Hugging Face."""
        ours, theirs = tensors_of(converted(MIXTRAL, tmp_path).path), load_file(MIXTRAL / "model.safetensors")

        def get(name):
            return theirs[f"model.layers.1.{name}.weight"].astype(np.float32)

        experts = "block_sparse_moe.experts.3"
        for name, wanted in {
            "attention/qkv": np.concatenate([get(f"self_attn.{p}_proj") for p in "qkv"]),
            "attention/o": get("self_attn.o_proj"),
            "attention_norm": get("input_layernorm"),
            "ffn_norm": get("post_attention_layernorm"),
            "gate": get("block_sparse_moe.gate"),
            "experts/003/gate_up": np.concatenate([get(f"{experts}.w1"), get(f"{experts}.w3")]),
            "experts/003/down": get(f"{experts}.w2"),
        }.items():
            np.testing.assert_array_equal(ours[f"layers/001/{name}"], wanted, err_msg=name)
        np.testing.assert_array_equal(ours["embedding"], theirs["model.embed_tokens.weight"].astype(np.float32))
        np.testing.assert_array_equal(ours["norm"], theirs["model.norm.weight"].astype(np.float32))
        np.testing.assert_array_equal(ours["head"], theirs["lm_head.weight"].astype(np.float32))

    def test_blocks_of_any_size_give_the_same_tensors(self, monkeypatch):
        wanted = {name: read_tensors(open_checkpoint(GOLDENS / name)) for name in ("mixtral", "mixtral_fused")}
        monkeypatch.setattr(model, "BLOCK", 100)
        for name, tensors in wanted.items():
            for tensor, values in read_tensors(open_checkpoint(GOLDENS / name)).items():
                np.testing.assert_array_equal(values, tensors[tensor])

    def test_the_spec_is_that_of_the_config(self, tmp_path):
        found = converted(MIXTRAL, tmp_path).spec
        assert (found.layers, found.hidden, found.vocabulary, found.context) == (3, 64, 320, 128)
        assert found.attention == Attention(4, 2, 16, 10000.0)
        assert (found.moe.experts, found.moe.top_k, found.moe.hidden, found.moe.renormalise) == (8, 2, 32, True)
        assert (found.norm_eps, found.tied_head, found.eos, found.dense) == (1e-5, False, (), None)

    def test_the_window_is_taken(self, tmp_path):
        assert converted(GOLDENS / "mixtral_window", tmp_path).spec.attention.window == 6

    @pytest.mark.parametrize(
        "keys, eos", [({"eos_token_id": 2}, (2,)), ({"eos_token_id": [2, 7]}, (2, 7)), ({"eos_token_id": None}, ())]
    )
    def test_end_tokens_are_none_one_or_several(self, keys, eos, folder):
        self.config(folder, **keys)
        assert open_checkpoint(folder).spec.eos == eos

    def test_end_tokens_of_generation_config_win(self, folder):
        self.config(folder, eos_token_id=2)
        (folder / "generation_config.json").write_text('{"eos_token_id": [2, 9], "temperature": 0.5}')
        assert open_checkpoint(folder).spec.eos == (2, 9)

    def test_without_a_tokenizer_there_is_one_warning(self, capsys, tmp_path):
        assert converted(MIXTRAL, tmp_path).tokenizer == ""
        err = capsys.readouterr().err
        assert err.count("warning") == 1 and "tokenizer.json" in err

    def test_with_a_tokenizer_it_is_carried_without_a_warning(self, capsys, folder):
        (folder / "tokenizer.json").write_text(byte_tokenizer(), encoding="utf-8")
        found = converted(folder, folder.parent)
        assert Tokenizer(found.tokenizer).encode("ab") == [97, 98]
        assert "warning" not in capsys.readouterr().err

    @pytest.mark.parametrize("text", ["", "{", "{}", '{"version": "9"}'])
    def test_a_tokenizer_that_is_none_is_refused_at_once(self, text, folder):
        """Not only when prompts are made, hours of copying later."""
        (folder / "tokenizer.json").write_text(text)
        assert "tokenizer.json" in refused(folder)

    def test_other_files_in_the_folder_are_left_alone(self, folder):
        for name in ("README.md", "special_tokens_map.json", "pytorch_model.bin", "tokenizer.model"):
            (folder / name).write_text("x")
        (folder / "original").mkdir()
        assert open_checkpoint(folder).spec.layers == 3

    @pytest.mark.parametrize(
        "key, value",
        [
            ("attention_sinks", 4),
            ("quantization_config", {"quant_method": "fp8"}),
            ("final_logit_softcapping", 30.0),
            ("zzz", False),
        ],
    )
    def test_an_unknown_key_is_refused_by_name(self, key, value, folder):
        self.config(folder, **{key: value})
        assert key in refused(folder)

    @pytest.mark.parametrize(
        "key, value",
        [
            ("transformers_version", "4.36.0"),
            ("use_cache", False),
            ("torch_dtype", "float16"),
            ("output_router_logits", True),
            ("pad_token_id", 0),
            ("architectures", ["X"]),
        ],
    )
    def test_keys_without_effect_are_left_out(self, key, value, folder):
        self.config(folder, **{key: value})
        assert open_checkpoint(folder).spec.layers == 3

    @pytest.mark.parametrize(
        "key",
        [
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "vocab_size",
            "intermediate_size",
            "max_position_embeddings",
        ],
    )
    def test_a_missing_key_is_named(self, key, folder):
        self.config(folder, **{key: ...})
        assert f"no key {key}" in refused(folder)

    @pytest.mark.parametrize(
        "key, value",
        [
            ("hidden_size", "64"),
            ("num_hidden_layers", 3.0),
            ("tie_word_embeddings", "no"),
            ("rms_norm_eps", "1e-5"),
            ("hidden_act", "gelu"),
            ("rope_theta", "big"),
            ("sliding_window", True),
            ("eos_token_id", "x"),
            ("eos_token_id", ["x"]),
            ("rope_parameters", 5),
            ("rope_parameters", {"rope_theta": "big"}),
        ],
    )
    def test_a_wrong_value_is_named(self, key, value, folder):
        if key == "rope_theta":
            self.config(folder, rope_parameters=...)
        self.config(folder, **{key: value})
        assert key in refused(folder)

    @pytest.mark.parametrize(
        "nested", [{"rope_type": "yarn", "factor": 4.0}, {"type": "linear", "factor": 2.0}, {"rope_type": "llama3"}]
    )
    @pytest.mark.parametrize("key", ["rope_parameters", "rope_scaling"])
    def test_other_rotary_positions_are_refused(self, key, nested, folder):
        self.config(folder, **{"rope_parameters": ..., key: nested})
        assert nested.get("rope_type", nested.get("type")) in refused(folder)

    def test_a_part_of_the_head_turned_is_refused(self, folder):
        self.config(folder, rope_parameters={"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5})
        assert "partial_rotary_factor" in refused(folder)

    @pytest.mark.parametrize("key", ["rope_scaling", "head_dim", "sliding_window"])
    def test_null_is_as_good_as_nothing(self, key, folder):
        self.config(folder, **{key: None})
        assert open_checkpoint(folder).spec.attention.head_dim == 16

    @pytest.mark.parametrize(
        "keys",
        [
            {"num_experts_per_tok": 9},
            {"eos_token_id": 320},
            {"max_position_embeddings": 1},
            {"num_experts_per_tok": 0},
            {"sliding_window": -1},
        ],
    )
    def test_a_config_that_makes_no_sense_is_refused_before_writing(self, keys, folder):
        """Else the model file is written whole, and no program can open it."""
        self.config(folder, **keys)
        assert refused(folder)

    def test_other_model_types_are_refused_with_those_that_are_known(self, folder):
        self.config(folder, model_type="gpt2")
        assert "'gpt2'" in refused(folder) and "mixtral" in refused(folder)

    def test_a_config_without_a_model_type(self, folder):
        self.config(folder, model_type=...)
        assert "model_type" in refused(folder)

    def test_a_missing_config(self, folder):
        (folder / "config.json").unlink()
        assert "config.json does not exist" in refused(folder)

    @pytest.mark.parametrize("text", ["", "{", "[]", "3"])
    def test_a_config_that_is_none(self, text, folder):
        (folder / "config.json").write_text(text)
        assert "JSON" in refused(folder)

    def test_an_unknown_tensor_is_refused_by_name(self, folder):
        self.tensors(folder, lambda t: t.update({"model.layers.0.self_attn.q_norm.weight": np.ones(16, np.float32)}))
        assert "model.layers.0.self_attn.q_norm.weight" in refused(folder)

    def test_a_layer_too_many_is_refused(self, folder):
        self.config(folder, num_hidden_layers=2)
        assert "model.layers.2" in refused(folder)

    def test_an_expert_too_many_is_refused(self, folder):
        self.config(folder, num_local_experts=7)
        assert refused(folder)

    @pytest.mark.parametrize(
        "name",
        [
            "lm_head.weight",
            "model.layers.2.self_attn.k_proj.weight",
            "model.layers.1.block_sparse_moe.experts.5.w3.weight",
            "model.norm.weight",
        ],
    )
    def test_a_missing_tensor_is_named(self, name, folder):
        self.tensors(folder, lambda t: t.pop(name))
        assert name in refused(folder)

    @pytest.mark.parametrize(
        "name",
        [
            "lm_head.weight",
            "model.layers.2.self_attn.k_proj.weight",
            "model.norm.weight",
            "model.layers.1.block_sparse_moe.experts.5.w3.weight",
        ],
    )
    @pytest.mark.parametrize(
        "change",
        [lambda v: v[:-1], lambda v: v[..., :-1], lambda v: v[None], lambda v: v.reshape(-1)[:1].reshape(())],
        ids=["rows", "columns", "dimensions", "scalar"],
    )
    def test_a_tensor_of_the_wrong_shape_is_named(self, name, change, folder):
        self.tensors(folder, lambda t: t.update({name: np.ascontiguousarray(change(t[name]))}))
        line = refused(folder)
        assert "shape" in line and name.split(".")[-2] in line

    @pytest.mark.parametrize(
        "more, less",
        [("self_attn.q_proj", "self_attn.v_proj"), ("block_sparse_moe.experts.0.w1", "block_sparse_moe.experts.0.w3")],
    )
    def test_parts_that_are_wrong_but_right_together_are_refused(self, more, less, folder):
        """One row more here and one less there would shift all that is between."""

        def change(tensors):
            a, b = (f"model.layers.1.{name}.weight" for name in (more, less))
            tensors[a], tensors[b] = np.concatenate([tensors[a], tensors[b][:1]]), tensors[b][1:].copy()

        self.tensors(folder, change)
        assert "shape" in refused(folder)

    def test_a_fused_tensor_of_fewer_experts_is_refused(self, tmp_path):
        shutil.copytree(GOLDENS / "mixtral_fused", tmp_path / "f")
        name = "model.layers.1.mlp.experts.down_proj"
        self.tensors(tmp_path / "f", lambda t: t.update({name: t[name][:5].copy()}))
        assert name in refused(tmp_path / "f")

    def test_a_fused_tensor_of_more_experts_is_refused(self, tmp_path):
        shutil.copytree(GOLDENS / "mixtral_fused", tmp_path / "f")
        self.config(tmp_path / "f", num_local_experts=7)
        self.tensors(
            tmp_path / "f", lambda t: t.update({n: v[:7].copy() for n, v in t.items() if n.endswith("mlp.gate.weight")})
        )
        assert "experts" in refused(tmp_path / "f")

    def test_a_number_format_that_is_not_read_is_named(self, folder):
        self.tensors(folder, lambda t: t.update({"model.norm.weight": np.ones(64, np.int8)}))
        assert "model.norm.weight is I8" in refused(folder)

    def test_a_head_that_is_there_twice_is_fine_where_it_is_tied(self, folder):
        self.config(folder, tie_word_embeddings=True)
        assert open_checkpoint(folder).spec.tied_head

    def test_a_missing_shard_is_named(self, tmp_path):
        shutil.copytree(GOLDENS / "mixtral_sharded", tmp_path / "s")
        (tmp_path / "s" / "model-00002-of-00003.safetensors").unlink()
        assert "model-00002-of-00003.safetensors does not exist" in refused(tmp_path / "s")

    def test_shards_without_their_index_are_found(self, tmp_path):
        shutil.copytree(GOLDENS / "mixtral_sharded", tmp_path / "s")
        (tmp_path / "s" / "model.safetensors.index.json").unlink()
        assert_same_tensors(open_checkpoint(tmp_path / "s"), open_checkpoint(MIXTRAL))

    @pytest.mark.parametrize("text", ["{", "{}", "[]"])
    def test_an_index_that_is_none_is_refused(self, text, tmp_path):
        shutil.copytree(GOLDENS / "mixtral_sharded", tmp_path / "s")
        (tmp_path / "s" / "model.safetensors.index.json").write_text(text)
        assert refused(tmp_path / "s")

    @pytest.mark.parametrize("share", [0.0, 0.00001, 0.001, 0.02, 0.5, 0.999999])
    def test_a_truncated_file_is_refused(self, share, folder):
        path = folder / "model.safetensors"
        content = path.read_bytes()
        path.write_bytes(content[: int(share * len(content))])
        assert "model.safetensors is not a whole safetensors file" in refused(folder)

    def test_a_pointer_of_git_lfs_is_refused(self, folder):
        """What a clone without Git LFS holds instead of weights."""
        (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
        assert "model.safetensors" in refused(folder)

    def test_a_folder_without_weights(self, folder):
        (folder / "model.safetensors").unlink()
        (folder / "pytorch_model.bin").write_text("x")
        assert "no .safetensors files" in refused(folder)

    @pytest.mark.parametrize("name", ["model.bin", "config.json", "model.safetensors"])
    def test_a_file_where_a_folder_is_wanted(self, name, tmp_path):
        (tmp_path / name).write_text("{}")
        assert "folder" in refused(tmp_path / name)

    def test_a_source_that_is_not_there(self, tmp_path):
        assert "does not exist" in refused(tmp_path / "nowhere")

    def test_nan_in_a_checkpoint_is_no_success(self, folder):
        """Weights are checked where they are read: at the latest by the one who opens the model file."""

        def change(tensors):
            tensors["model.norm.weight"][3] = np.nan

        self.tensors(folder, change)
        with pytest.raises(InputError, match="norm"):
            read_tensors(converted(folder, folder.parent))

    def test_experts_cannot_be_upcycled_again(self, capsys, monkeypatch, tmp_path):
        result = command(capsys, monkeypatch, "convert", MIXTRAL, "-o", tmp_path / "m.h5", "--upcycle", "copies")
        assert result.code == 2 and "has experts already" in result.err and not list(tmp_path.iterdir())

    def test_the_verb_says_what_it_wrote(self, capsys, monkeypatch, tmp_path):
        result = command(capsys, monkeypatch, "convert", MIXTRAL, "-o", tmp_path / "m.h5")
        assert result.code == 0 and result.out.count("\n") == 1 and "m.h5" in result.out and "bfloat16" in result.out

    def test_a_wrong_source_is_code_3(self, capsys, monkeypatch, tmp_path):
        assert_one_line(
            command(capsys, monkeypatch, "convert", tmp_path / "x", "-o", tmp_path / "m.h5"), 3, "does not exist"
        )
