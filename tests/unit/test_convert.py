"""Checkpoints of others: what is read gives the same tensors, and what is not understood is refused by name."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
from helpers import (
    DENSE,
    END,
    GOLDENS,
    MOE,
    Given,
    assert_one_line,
    assert_same_tensors,
    byte_alphabet,
    byte_tokenizer,
    command,
    read_tensors,
    tensors_of,
)
from safetensors.numpy import load_file, save_file

from hpcmoe import reference, spec
from hpcmoe.convert import checkpoint
from hpcmoe.convert.checkpoint import open_checkpoint
from hpcmoe.convert.gguf import unpermute
from hpcmoe.convert.upcycle import Copies, Slices
from hpcmoe.errors import InputError, JobError
from hpcmoe.files import model
from hpcmoe.files.model import ModelFile
from hpcmoe.files.tokenizer import Tokenizer
from hpcmoe.spec import Attention, Dense, ModelSpec

MIXTRAL = GOLDENS / "mixtral"
TOKENS = np.array([3, 1, 4, 1, 5, 9, 2, 6])


def converted(
    source: Path, folder: Path, dtype: str = "float32", upcycle: str | None = None, experts: int = 4, top_k: int = 2
) -> ModelFile:
    """What `hpcmoe convert` makes of a source."""
    checkpoint.convert(source, folder / "m.h5", dtype, upcycle, experts, top_k, 0)
    return ModelFile(folder / "m.h5")


def refused(source: Path, error: type[Exception] = InputError) -> str:
    """What is said, in one line, of a source that cannot be converted; nothing is written."""
    target = source.parent / "refused.h5"
    with pytest.raises(error) as caught:
        checkpoint.convert(source, target, "float32", None, 4, 2, 0)
    assert not target.exists()
    assert "\n" not in str(caught.value) and str(source) in str(caught.value)
    return str(caught.value)


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


class TestUpcycling:
    """A dense model as experts gives the dense model's answers."""

    @pytest.fixture
    def dense(self):
        return Given(DENSE, seed=4)

    @pytest.fixture
    def wanted(self, dense):
        return reference.logits(DENSE, reference.reader(dense), TOKENS)

    @pytest.mark.parametrize(
        "make",
        [
            lambda d: Copies(d, 4, 2, 0),
            lambda d: Copies(d, 1, 1, 0),
            lambda d: Copies(d, 3, 3, 9),
            lambda d: Copies(d, 16, 1, 1),
            lambda d: Slices(d, 2),
            lambda d: Slices(d, 5),
            lambda d: Slices(d, 3),
            lambda d: Slices(d, 4),
            lambda d: Slices(d, 1),
            lambda d: Slices(d, 10),
            lambda d: Slices(d, 16),
        ],
        ids=[
            "4 copies",
            "1 copy",
            "3 of 3 copies",
            "1 of 16 copies",
            "2 slices",
            "5 slices",
            "3 slices, 10 wide",
            "4 slices, 10 wide",
            "1 slice",
            "slices of one",
            "more slices than width",
        ],
    )
    def test_logits_are_those_of_the_dense_model(self, make, dense, wanted):
        upcycled = make(dense)
        spec.from_table(spec.tables.parse(spec.tables.dump(upcycled.spec)))
        found = reference.logits(upcycled.spec, reference.reader(upcycled), TOKENS)
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-9 * wanted.std())

    @pytest.mark.parametrize("make", [lambda d: Copies(d, 4, 2, 0), lambda d: Slices(d, 3)], ids=["copies", "slices"])
    def test_what_is_written_is_what_was_made(self, make, dense, tmp_path):
        upcycled = make(dense)
        model.write(tmp_path / "m.h5", upcycled, "float32", same=getattr(upcycled, "same", lambda t: None))
        assert_same_tensors(ModelFile(tmp_path / "m.h5"), upcycled)

    def test_the_gate_of_copies_is_random_and_seeded(self, dense):
        gates = [read_tensors(Copies(dense, 4, 2, seed))["layers/000/gate"] for seed in (0, 0, 1)]
        np.testing.assert_array_equal(gates[0], gates[1])
        assert (gates[0] != gates[2]).any() and len(np.unique(gates[0])) > 50

    def test_copies_route_tokens_to_different_experts(self, dense):
        gate = read_tensors(Copies(dense, 4, 2, 0))["layers/000/gate"]
        chosen = np.random.default_rng(0).standard_normal((200, 16)) @ gate.T
        assert (np.bincount(chosen.argmax(axis=1), minlength=4) > 10).all()

    def test_end_tokens_context_and_tokenizer_are_kept(self):
        source = Given(DENSE, tokenizer="{}")
        for upcycled in (Copies(source, 4, 2, 0), Slices(source, 3)):
            assert (upcycled.spec.eos, upcycled.spec.context, upcycled.tokenizer) == ((256,), 64, "{}")


LLAMA = ModelSpec(
    "tiny-llama",
    2,
    32,
    258,
    64,
    Attention(4, 2, 8, 5000.0),
    Dense(64, 2),
    norm_eps=float(np.float32(1e-5)),
    tied_head=True,
    eos=(256,),
)


def permute(values: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a query or key matrix as llama.cpp's converter orders them."""
    rows, columns = values.shape
    return values.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def gguf_tensors(source) -> dict[str, np.ndarray]:
    """The tensors of a dense model under llama.cpp's names, in its order."""
    found, a = read_tensors(source), source.spec.attention
    out = {"token_embd.weight": found["embedding"], "output_norm.weight": found["norm"]}
    if not source.spec.tied_head:
        out["output.weight"] = found["head"]
    for n in range(source.spec.layers):
        q, k, v = np.split(found[f"layers/{n:03d}/attention/qkv"], [a.query_width, a.query_width + a.kv_width])
        gate, up = np.split(found[f"layers/{n:03d}/dense/gate_up"], 2)
        names = {
            "attn_norm": found[f"layers/{n:03d}/attention_norm"],
            "attn_q": permute(q, a.heads),
            "attn_k": permute(k, a.kv_heads),
            "attn_v": v,
            "attn_output": found[f"layers/{n:03d}/attention/o"],
            "ffn_norm": found[f"layers/{n:03d}/ffn_norm"],
            "ffn_gate": gate,
            "ffn_up": up,
            "ffn_down": found[f"layers/{n:03d}/dense/down"],
        }
        out |= {f"blk.{n}.{name}.weight": values for name, values in names.items()}
    return out


def gguf_keys() -> dict[str, tuple[str, object]]:
    """The metadata of `LLAMA`: for each name the writer's method and the value."""
    m, a = LLAMA, LLAMA.attention
    return {
        "general.name": ("add_string", m.name),
        "llama.block_count": ("add_uint32", m.layers),
        "llama.context_length": ("add_uint32", m.context),
        "llama.embedding_length": ("add_uint32", m.hidden),
        "llama.feed_forward_length": ("add_uint32", m.dense.hidden),
        "llama.attention.head_count": ("add_uint32", a.heads),
        "llama.attention.head_count_kv": ("add_uint32", a.kv_heads),
        "llama.rope.freq_base": ("add_float32", a.rope_theta),
        "llama.rope.dimension_count": ("add_uint32", a.head_dim),
        "llama.attention.layer_norm_rms_epsilon": ("add_float32", 1e-5),
        "llama.vocab_size": ("add_uint32", m.vocabulary),
        "tokenizer.ggml.model": ("add_string", "gpt2"),
        "tokenizer.ggml.pre": ("add_string", "smollm"),
        "tokenizer.ggml.tokens": ("add_array", [*byte_alphabet(), END, "ab"]),
        "tokenizer.ggml.token_type": ("add_array", [1] * 256 + [3, 1]),
        "tokenizer.ggml.merges": ("add_array", ["a b"]),
        "tokenizer.ggml.eos_token_id": ("add_uint32", 256),
        "tokenizer.ggml.add_bos_token": ("add_bool", False),
    }


def write_gguf(
    path: Path,
    source,
    quantised: bool = False,
    architecture: str = "llama",
    keys: dict | None = None,
    tensors: dict | None = None,
) -> Path:
    """A GGUF file; `keys` and `tensors` replace or, where None, leave out."""
    writer = gguf.GGUFWriter(path, architecture)
    for name, pair in (gguf_keys() | (keys or {})).items():
        if pair is not None:
            method, value = pair
            getattr(writer, method)(name, value)
    for name, values in (gguf_tensors(source) | (tensors or {})).items():
        if values is None:
            continue
        if quantised and values.ndim == 2:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


class TestGguf:
    """Dense Llama models of llama.cpp."""

    @pytest.fixture
    def source(self):
        return Given(LLAMA, seed=8)

    @pytest.mark.parametrize("tied", [True, False], ids=["tied head", "head of its own"])
    def test_tensors_spec_and_names_come_through(self, tied, tmp_path):
        source = Given(replace(LLAMA, tied_head=tied), seed=8)
        found = converted(write_gguf(tmp_path / "m.gguf", source), tmp_path)
        assert found.spec == source.spec
        assert_same_tensors(found, source)

    def test_quantised_tensors_are_dequantised(self, source, tmp_path):
        found = read_tensors(converted(write_gguf(tmp_path / "m.gguf", source, quantised=True), tmp_path))
        for name, wanted in read_tensors(source).items():
            step = np.abs(wanted).max() / 127
            np.testing.assert_allclose(found[name], wanted, rtol=0, atol=0.6 * step, err_msg=name)  # scales are float16
        assert (found["embedding"] != read_tensors(source)["embedding"]).any()

    @pytest.mark.parametrize("heads, width", [(1, 2), (1, 8), (3, 4), (4, 16), (9, 64)])
    def test_rows_of_queries_and_keys_come_back_in_our_order(self, heads, width):
        values = np.arange(heads * width * 3, dtype=np.float32).reshape(heads * width, 3)
        np.testing.assert_array_equal(unpermute(permute(values, heads), heads), values)
        if width > 4:
            assert (unpermute(values, heads) != values).any()

    def test_the_tokenizer_comes_through(self, source, tmp_path):
        found = Tokenizer(converted(write_gguf(tmp_path / "m.gguf", source), tmp_path).tokenizer)
        assert found.encode(f"abc{END} 12") == [257, 99, 256, 32, 49, 50]
        assert found.decode([257, 99, 256, 195, 188]) == "abcü"

    def test_the_answers_of_its_copies_are_those_of_the_dense_model(self, source, tmp_path):
        path = write_gguf(tmp_path / "m.gguf", source)
        wanted = reference.logits(LLAMA, reference.reader(source), TOKENS)
        for upcycle in ("copies", "slices"):
            found = converted(path, tmp_path, upcycle=upcycle)
            assert found.spec.moe.experts == 4
            got = reference.logits(found.spec, reference.reader(found), TOKENS)
            np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-6 * wanted.std())

    def test_more_experts_per_token_than_experts_is_a_mistake(self, source, tmp_path):
        with pytest.raises(JobError, match="--top-k 5 is more than --experts 4"):
            converted(write_gguf(tmp_path / "m.gguf", source), tmp_path, upcycle="copies", top_k=5)

    def test_names_that_are_left_out_have_defaults(self, source, tmp_path):
        keys = dict.fromkeys(
            ["general.name", "llama.rope.freq_base", "llama.rope.dimension_count", "tokenizer.ggml.eos_token_id"]
        )
        found = open_checkpoint(write_gguf(tmp_path / "m.gguf", source, keys=keys)).spec
        assert (found.name, found.attention.rope_theta, found.eos) == ("m", 10000.0, ())

    @pytest.mark.parametrize("architecture", ["qwen2", "mamba", "phi3"])
    def test_another_architecture_is_named(self, architecture, source, tmp_path):
        assert f"architecture {architecture}" in refused(
            write_gguf(tmp_path / "m.gguf", source, architecture=architecture)
        )

    @pytest.mark.parametrize(
        "name, pair",
        [
            ("llama.expert_count", ("add_uint32", 8)),
            ("llama.rope.scaling.type", ("add_string", "yarn")),
            ("llama.rope.dimension_count", ("add_uint32", 4)),
            ("llama.rope.scale_linear", ("add_float32", 4.0)),
            ("llama.rope.scaling.factor", ("add_float32", 4.0)),
            ("llama.attention.sliding_window", ("add_uint32", 16)),
            ("llama.attention.value_length", ("add_uint32", 4)),
            ("llama.attention.clamp_kqv", ("add_float32", 8.0)),
            ("llama.attention.scale", ("add_float32", 0.1)),
            ("llama.logit_scale", ("add_float32", 8.0)),
        ],
    )
    def test_metadata_that_would_change_answers_is_refused_by_name(self, name, pair, source, tmp_path):
        assert name in refused(write_gguf(tmp_path / "m.gguf", source, keys={name: pair}))

    @pytest.mark.parametrize(
        "name, pair",
        [
            ("tokenizer.ggml.model", ("add_string", "llama")),
            ("tokenizer.ggml.model", None),
            ("tokenizer.ggml.pre", ("add_string", "llama-bpe")),
            ("tokenizer.ggml.add_bos_token", ("add_bool", True)),
        ],
    )
    def test_another_tokenizer_is_refused(self, name, pair, source, tmp_path):
        assert "token" in refused(write_gguf(tmp_path / "m.gguf", source, keys={name: pair}))

    @pytest.mark.parametrize(
        "name",
        [
            "llama.block_count",
            "llama.context_length",
            "llama.embedding_length",
            "llama.feed_forward_length",
            "llama.attention.head_count",
            "llama.attention.layer_norm_rms_epsilon",
            "tokenizer.ggml.tokens",
            "tokenizer.ggml.merges",
            "tokenizer.ggml.token_type",
        ],
    )
    def test_missing_metadata_is_named(self, name, source, tmp_path):
        assert name in refused(write_gguf(tmp_path / "m.gguf", source, keys={name: None}))

    @pytest.mark.parametrize(
        "name", ["token_embd.weight", "blk.1.attn_k.weight", "blk.0.ffn_down.weight", "output_norm.weight"]
    )
    def test_a_missing_tensor_is_named(self, name, source, tmp_path):
        assert f"does not have the tensor {name}" in refused(
            write_gguf(tmp_path / "m.gguf", source, tensors={name: None})
        )

    @pytest.mark.parametrize("name", ["rope_freqs.weight", "blk.2.attn_q.weight", "blk.0.attn_q.bias"])
    def test_an_unknown_tensor_is_named(self, name, source, tmp_path):
        assert name in refused(write_gguf(tmp_path / "m.gguf", source, tensors={name: np.ones((32, 32), np.float32)}))

    @pytest.mark.parametrize(
        "name, shape",
        [
            ("token_embd.weight", (260, 32)),
            ("token_embd.weight", (250, 32)),
            ("output_norm.weight", (31,)),
            ("blk.0.ffn_up.weight", (63, 32)),
            ("blk.1.attn_q.weight", (32, 16)),
            ("blk.1.attn_k.weight", (8, 32)),
            ("blk.0.ffn_down.weight", (64, 32)),
        ],
    )
    def test_a_tensor_of_the_wrong_shape_is_named(self, name, shape, source, tmp_path):
        assert name in refused(write_gguf(tmp_path / "m.gguf", source, tensors={name: np.ones(shape, np.float32)}))

    @pytest.mark.parametrize(
        "keys",
        [
            {"llama.attention.head_count": ("add_uint32", 5)},
            {"llama.attention.head_count_kv": ("add_uint32", 3)},
            {"tokenizer.ggml.eos_token_id": ("add_uint32", 9999)},
        ],
    )
    def test_shapes_that_make_no_sense_are_refused(self, keys, source, tmp_path):
        assert refused(write_gguf(tmp_path / "m.gguf", source, keys=keys))

    @pytest.mark.parametrize("share", [0.0, 0.00002, 0.0001, 0.01, 0.1, 0.5, 0.9, 0.999])
    def test_a_truncated_file_is_refused(self, share, source, tmp_path):
        path = write_gguf(tmp_path / "m.gguf", source)
        content = path.read_bytes()
        path.write_bytes(content[: int(share * len(content))])
        assert "GGUF" in refused(path)

    def test_a_file_that_is_no_gguf_is_refused(self, tmp_path):
        (tmp_path / "m.gguf").write_text("not at all a model " * 99)
        assert "GGUF" in refused(tmp_path / "m.gguf")

    def test_a_folder_with_that_ending_is_a_checkpoint_folder(self, tmp_path):
        (tmp_path / "m.gguf").mkdir()
        assert "config.json" in refused(tmp_path / "m.gguf")

    def test_the_capital_ending_is_one_too(self, source, tmp_path):
        assert open_checkpoint(write_gguf(tmp_path / "m.GGUF", source)).spec == LLAMA


def test_moe_specs_of_tests_are_right():
    """The tests' own models fit together."""
    for found in (DENSE, MOE, LLAMA):
        assert spec.from_table(spec.tables.parse(spec.tables.dump(found))) == found
