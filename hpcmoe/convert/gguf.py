"""GGUF files of llama.cpp, of the Llama architecture: dense models, dequantised by the `gguf` package."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from hpcmoe import child
from hpcmoe.convert.keys import Keys
from hpcmoe.convert.parts import checked, part_shapes
from hpcmoe.convert.tokenizer import chat_of, from_gguf, listed
from hpcmoe.errors import InputError, JobError
from hpcmoe.files import vet
from hpcmoe.paths import unreadable
from hpcmoe.spec import Attention, Dense, ModelSpec, Tensor, tensors
from hpcmoe.spec_table import check

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
        vet.check(path, by="hpcmoe.convert.gguf")
        reader = _open(path)
        self._tensors = {t.name: t for t in reader.tensors}
        values = {name: field.contents() for name, field in reader.fields.items()}
        self.spec = _spec(values, "output.weight" not in self._tensors, path)
        self.tokenizer, self.chat = from_gguf(values, path), chat_of(values, path)
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
        for tensor in tensors(self.spec):
            parts = self._names(tensor)
            for name, shape in zip(parts, part_shapes(self.spec, tensor, len(parts))):
                found = tuple(int(n) for n in reversed(self._tensors[name].shape))
                if found != shape:
                    raise InputError(f"{self.path}: {name} has shape {found}, the metadata say {shape}")

    def _names(self, tensor: Tensor) -> list[str]:
        """The file's tensors that make up one of ours, one below the other."""
        if tensor.name in OUTER:
            return [OUTER[tensor.name]]
        return [f"blk.{tensor.layer}.{name}" for name in LAYER[tensor.kind]]

    def blocks(self, tensor: Tensor) -> Iterator[np.ndarray]:
        """See `Source`."""
        heads = {"attn_q": self.spec.attention.heads, "attn_k": self.spec.attention.kv_heads}
        for name in self._names(tensor):
            values, part = self._read(name), name.split(".")[-2]
            yield unpermute(values, heads[part]) if part in heads else values

    def _read(self, name: str) -> np.ndarray:
        tensor = self._tensors[name]
        data = np.asarray(tensor.data)  # views of a memmap are slow to make, and each row or so becomes several
        try:
            with np.errstate(all="ignore"):  # of scales that are no numbers
                return checked(self._dequantise(data, tensor.tensor_type), name, self.path)
        except NotImplementedError:
            raise InputError(f"{self.path}: tensor {name} is quantised as {tensor.tensor_type.name}, which the gguf "
                             "package does not dequantise") from None


def examine(path: Path, what: str = "") -> None:
    """What a child does with a file first: the package's reader believes every count, and reads on behind the end.

    Raises `InputError`.
    """
    for field in _open(path).fields.values():
        field.contents()


def _open(path: Path):
    import gguf
    try:
        return gguf.GGUFReader(path)
    except OSError as error:
        raise InputError(f"{path} {unreadable(error)}") from None
    except (ValueError, LookupError, TypeError, ArithmeticError, RecursionError) as error:  # it has no class for it
        raise InputError(f"{path} is not a whole GGUF file ({error})") from None


def unpermute(values: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a query or key matrix `[heads * d, in]` back from llama.cpp's order (rotary pairs
    side by side) to that of checkpoints (pairs in the two halves of a head)."""
    out, width = values.shape
    return values.reshape(heads, out // heads // 2, 2, width).swapaxes(1, 2).reshape(out, width)


def _spec(values: dict[str, Any], tied: bool, path: Path) -> ModelSpec:
    architecture = values.get("general.architecture")
    if architecture != "llama":
        raise InputError(f"{path}: architecture {architecture} is not read from GGUF; llama is. Convert the model's "
                         "Hugging Face checkpoint instead")
    keys = Keys({name: value for name, value in values.items() if name.startswith("llama.")}, str(path))
    layers, hidden = keys.whole("llama.block_count"), keys.whole("llama.embedding_length")
    eos = values.get("tokenizer.ggml.eos_token_id")
    found = ModelSpec(values.get("general.name", path.stem), layers, hidden, len(listed(values, "tokens", path, str)),
                      keys.whole("llama.context_length"), _attention(keys, hidden),
                      Dense(keys.whole("llama.feed_forward_length"), layers),
                      norm_eps=float(np.float32(keys.number("llama.attention.layer_norm_rms_epsilon"))),
                      tied_head=tied, eos=() if eos is None else (eos,))
    keys.only("llama.vocab_size", found.vocabulary)
    keys.only("llama.expert_count", 0)
    keys.only("llama.expert_used_count", 0)
    keys.finish()
    check(found, str(path))
    return found


def _attention(keys: Keys, hidden: int) -> Attention:
    heads = keys.whole("llama.attention.head_count", least=1)
    head_dim = keys.whole("llama.attention.key_length", default=hidden // heads)
    keys.only("llama.attention.value_length", head_dim)
    keys.only("llama.rope.dimension_count", head_dim)
    keys.only("llama.rope.scaling.type", "none")
    return Attention(heads, keys.whole("llama.attention.head_count_kv", default=heads), head_dim,
                     keys.number("llama.rope.freq_base", default=10000.0))


if __name__ == "__main__":
    child.serve(examine)
