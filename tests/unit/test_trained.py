"""Small trained models: what their texts and prompts are, and that what was written of them is read as it was meant."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import ROOT, command, read_tensors

from hpcmoe import array, reference
from hpcmoe.convert.huggingface import HuggingFaceCheckpoint
from hpcmoe.files import prompts

TRAINED = ROOT / "tests" / "trained"
sys.path.append(str(TRAINED))
import texts  # noqa: E402

MODELS = sorted(path.parent for path in TRAINED.glob("*/held_out.json"))
CONFIG = {"model_type": "mixtral", "vocab_size": 256, "hidden_size": 8, "intermediate_size": 3, "num_hidden_layers": 1,
          "num_attention_heads": 2, "num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2,
          "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "sliding_window": None,
          "hidden_act": "silu", "tie_word_embeddings": True, "bos_token_id": None, "eos_token_id": None}
SHAPES = {"embed_tokens.weight": (256, 8), "norm.weight": (8,), "layers.0.input_layernorm.weight": (8,),
          "layers.0.post_attention_layernorm.weight": (8,), "layers.0.mlp.gate.weight": (4, 8),
          "layers.0.mlp.experts.gate_up_proj": (4, 6, 8), "layers.0.mlp.experts.down_proj": (4, 8, 3),
          **{f"layers.0.self_attn.{name}_proj.weight": (8, 8) for name in "qkvo"}}


def checkpoint(folder: Path) -> dict[str, np.ndarray]:
    """One of random bfloat16 values, under the names that `train.py` writes; the values."""
    rng = np.random.default_rng(1)
    values = {name: array.widen(array.narrow(rng.normal(size=shape).astype(np.float32)))
              for name, shape in SHAPES.items()}
    texts.write_checkpoint(folder, CONFIG, {f"model.{name}": (found.shape, array.narrow(found).tobytes())
                                            for name, found in values.items()})
    return values


def test_what_is_written_is_a_checkpoint(tmp_path):
    pytest.importorskip("safetensors", reason="not installed: safetensors")
    values = checkpoint(tmp_path / "m")
    found = read_tensors(HuggingFaceCheckpoint(tmp_path / "m"))
    assert np.array_equal(found["embedding"], values["embed_tokens.weight"]) and "head" not in found
    for expert, want in enumerate(values["layers.0.mlp.experts.gate_up_proj"]):
        assert np.array_equal(found[f"layers/000/experts/{expert:03d}/gate_up"], want)


@pytest.mark.parametrize("folder", MODELS, ids=lambda folder: folder.name)
def test_a_trained_model_says_what_it_said_when_it_was_made(folder):
    """By PyTorch, in float32."""
    pytest.importorskip("safetensors", reason="not installed: safetensors")
    model, told = HuggingFaceCheckpoint(folder), json.loads((folder / "held_out.json").read_text())
    tokens = np.array(told["tokens"][:48])
    logits = reference.logits(model.spec, reference.reader(model), tokens)
    found = np.log([reference.softmax(row)[token] for row, token in zip(logits[:-1], tokens[1:])])
    assert np.allclose(found, told["logprobs"][:47], atol=1e-4)


def test_some_files_are_held_out_by_name_alone():
    held = {folder: [n for n in range(2000) if texts.held_out(Path(f"/{folder}/module{n}.py"))] for folder in "ab"}
    assert held["a"] == held["b"] and 50 < len(held["a"]) < 200


def test_texts_are_those_that_can_be_read(tmp_path):
    given = {"a.py": b"x = 1\n", "empty.py": b"", "latin.py": b"\xff\xfe", "large.py": b"#" * (texts.LONGEST + 1)}
    for name, text in given.items():
        (tmp_path / name).write_bytes(text)
    found = texts.read(sorted(tmp_path.iterdir()))
    assert found == {tmp_path / "a.py": b"x = 1\n"}


def make(output: Path, *words: object) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, TRAINED / "prompts.py", output, *map(str, words)], capture_output=True,
                          text=True)


def test_prompts_are_windows_of_held_out_files_that_begin_with_a_line(tmp_path):
    for output in ("a.jsonl", "b.jsonl"):
        made = make(tmp_path / output, "--count", 20, "--tokens", 50)
        assert made.returncode == 0, made.stderr
    assert (tmp_path / "a.jsonl").read_text() == (tmp_path / "b.jsonl").read_text()
    known = {path.name: path.read_bytes() for path in texts.python_sources() if texts.held_out(path)}
    for line in (tmp_path / "a.jsonl").read_text().splitlines():
        record = json.loads(line)
        name, begin = record["id"].split(":")
        text, at = known[name], int(begin)
        assert len(record["tokens"]) == 50 and (at == 0 or text[at - 1:at] == b"\n" or at == len(text) - 50)


def test_prompts_of_given_files_are_taken_by_a_model_of_bytes(capsys, monkeypatch, tmp_path):
    pytest.importorskip("safetensors", reason="not installed: safetensors")
    checkpoint(tmp_path / "m")
    assert command(capsys, monkeypatch, "convert", tmp_path / "m", "-o", tmp_path / "m.h5").code == 0
    (tmp_path / "ü.txt").write_text("größer\nals zuvor\n" * 9)
    made = make(tmp_path / "p.jsonl", "--files", tmp_path / "ü.txt", "--count", 3, "--tokens", 19, "--seed", 5)
    assert made.returncode == 0, made.stderr
    result = command(capsys, monkeypatch, "prompts", tmp_path / "p.jsonl", "-o", tmp_path / "p.h5", "--model",
                     tmp_path / "m.h5")
    assert result.code == 0, result.err
    found = prompts.read(tmp_path / "p.h5")
    assert len(found) == 3 and all(len(found[n]) == 19 for n in range(3))
    assert all(bytes(found[n].tolist()).startswith(("größer".encode(), b"als")) for n in range(3))


def test_texts_that_are_too_short_are_refused(tmp_path):
    (tmp_path / "a.txt").write_text("short")
    made = make(tmp_path / "p.jsonl", "--files", tmp_path / "a.txt")
    assert made.returncode == 1 and "no text has 128 bytes" in made.stderr and not (tmp_path / "p.jsonl").exists()
