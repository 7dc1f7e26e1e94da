"""GGUF files of llama.cpp, of the Llama architecture: dense models, dequantised by the `gguf` package."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from hpcmoe.convert.tokenizer import from_gguf
from hpcmoe.errors import InputError, JobError
from hpcmoe.spec import Attention, Dense, ModelSpec, Tensor

OUTER = {"embedding": "token_embd.weight", "norm": "output_norm.weight", "head": "output.weight"}
LAYER = {"attention_norm": ["attn_norm.weight"],
         "attention/qkv": ["attn_q.weight", "attn_k.weight", "attn_v.weight"],
         "attention/o": ["attn_output.weight"],
         "ffn_norm": ["ffn_norm.weight"],
         "dense/gate_up": ["ffn_gate.weight", "ffn_up.weight"],
         "dense/down": ["ffn_down.weight"]}


class GgufCheckpoint:
    """A GGUF file. A `files.model.Source`. Raises `InputError`."""

    def __init__(self, path: Path) -> None:
        try:
            import gguf
        except ModuleNotFoundError:
            raise JobError("GGUF files need the gguf package: pip install 'hpcmoe[convert]'") from None
        self.path = path
        self._dequantise = gguf.quants.dequantize
        try:
            reader = gguf.GGUFReader(path)
        except ValueError as error:  # the reader's own complaint about magic, version or size
            raise InputError(f"{path} is not a whole GGUF file ({error})") from None
        self._tensors = {t.name: t for t in reader.tensors}
        values = {name: field.contents() for name, field in reader.fields.items()}
        self.spec = _spec(values, "output.weight" not in self._tensors, path)
        self.tokenizer = from_gguf(values, path)
        self._check()

    def _check(self) -> None:
        wanted = set(OUTER.values()) | {f"blk.{n}.{name}" for n in range(self.spec.layers)
                                        for names in LAYER.values() for name in names}
        if self.spec.tied_head:
            wanted.discard(OUTER["head"])
        for problem, names in (("does not have", wanted - set(self._tensors)),
                               ("has, which this converter does not know,", set(self._tensors) - wanted)):
            if names:
                raise InputError(f"{self.path} {problem} the tensor {sorted(names)[0]}")

    def blocks(self, tensor: Tensor) -> Iterator[np.ndarray]:
        """See `Source`."""
        if tensor.name in OUTER:
            yield self._read(OUTER[tensor.name])
            return
        for name in LAYER[tensor.kind]:
            values = self._read(f"blk.{tensor.layer}.{name}")
            heads = {"attn_q.weight": self.spec.attention.heads, "attn_k.weight": self.spec.attention.kv_heads}
            yield unpermute(values, heads[name]) if name in heads else values

    def _read(self, name: str) -> np.ndarray:
        tensor = self._tensors[name]
        try:
            return self._dequantise(tensor.data, tensor.tensor_type).astype(np.float32, copy=False)
        except NotImplementedError:
            raise InputError(f"{self.path}: tensor {name} is quantised as {tensor.tensor_type.name}, which the gguf "
                             "package does not dequantise") from None


def unpermute(values: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a query or key matrix `[heads * d, in]` back from llama.cpp's order (rotary pairs
    side by side) to that of checkpoints (pairs in the two halves of a head)."""
    out, width = values.shape
    return values.reshape(heads, out // heads // 2, 2, width).swapaxes(1, 2).reshape(out, width)


def _spec(values: dict[str, Any], tied: bool, path: Path) -> ModelSpec:
    def get(name: str) -> Any:
        try:
            return values[name]
        except KeyError:
            raise InputError(f"{path} has no metadata {name}") from None

    architecture = get("general.architecture")
    if architecture != "llama":
        raise InputError(f"{path}: architecture {architecture} is not read from GGUF; llama is. Convert the model's "
                         "Hugging Face checkpoint instead")
    for name in ("llama.expert_count", "llama.rope.scaling.type"):
        if values.get(name) not in (None, 0, "none"):
            raise InputError(f"{path}: metadata {name} = {values[name]} is not read from GGUF")
    heads, hidden = get("llama.attention.head_count"), get("llama.embedding_length")
    layers = get("llama.block_count")
    head_dim = values.get("llama.attention.key_length", hidden // heads)
    if values.get("llama.rope.dimension_count", head_dim) != head_dim:
        raise InputError(f"{path}: metadata llama.rope.dimension_count differs from the head's {head_dim}: not read")
    attention = Attention(heads, values.get("llama.attention.head_count_kv", heads), head_dim,
                          float(values.get("llama.rope.freq_base", 10000.0)))
    eos = values.get("tokenizer.ggml.eos_token_id")
    return ModelSpec(values.get("general.name", path.stem), layers, hidden, len(get("tokenizer.ggml.tokens")),
                     get("llama.context_length"), attention, Dense(get("llama.feed_forward_length"), layers),
                     norm_eps=float(np.float32(get("llama.attention.layer_norm_rms_epsilon"))), tied_head=tied,
                     eos=() if eos is None else (int(eos),))
