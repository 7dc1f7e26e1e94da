"""Tokenizers of GGUF metadata, as the JSON of the `tokenizers` library."""

from pathlib import Path
from typing import Any

from hpcmoe.errors import InputError, JobError

CONTROL = 3
"""The token type of special tokens in GGUF."""


def from_gguf(values: dict[str, Any], path: Path) -> str:
    """The tokenizer that a GGUF file describes: byte-level BPE, pre-tokenised as GPT-2 or SmolLM does.

    Raises `InputError` for others, by name.
    """
    try:
        from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    except ModuleNotFoundError:
        raise JobError("GGUF tokenizers need the tokenizers package: pip install 'hpcmoe[text]'") from None
    kind, before = values.get("tokenizer.ggml.model"), values.get("tokenizer.ggml.pre", "default")
    splits = {"gpt-2": [], "default": [], "smollm": [pre_tokenizers.Digits(individual_digits=True)]}
    if kind != "gpt2" or before not in splits:
        known = ", ".join(f"gpt2/{name}" for name in splits)
        raise InputError(f"{path}: tokenizer {kind}/{before} is not read from GGUF; known: {known}")
    if values.get("tokenizer.ggml.add_bos_token"):
        raise InputError(f"{path}: tokenizers that add a first token are not read from GGUF")
    tokens = values["tokenizer.ggml.tokens"]
    merges = [tuple(pair.split(" ", 1)) for pair in values["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE({token: n for n, token in enumerate(tokens)}, merges))
    bytewise = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splits[before], bytewise])
    tokenizer.decoder = decoders.ByteLevel()
    special = [token for token, sort in zip(tokens, values["tokenizer.ggml.token_type"]) if sort == CONTROL]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return tokenizer.to_str()
