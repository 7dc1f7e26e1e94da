"""GGUF files: what is read gives the same tensors, and what is not understood is refused by name."""

from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
from helpers import (
    DENSE,
    END,
    MOE,
    Given,
    assert_same_tensors,
    byte_alphabet,
    converted,
    read_tensors,
    refused,
)

from hpcmoe import reference, spec_table, tables
from hpcmoe.convert.checkpoint import open_checkpoint
from hpcmoe.convert.gguf import unpermute
from hpcmoe.errors import JobError
from hpcmoe.files.tokenizer import Tokenizer
from hpcmoe.spec import Attention, Dense, ModelSpec

TOKENS = np.array([3, 1, 4, 1, 5, 9, 2, 6])


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
        assert spec_table.from_table(tables.parse(tables.dump(found))) == found
