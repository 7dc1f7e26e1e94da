"""Tokenizers of GGUF metadata, as the JSON of the `tokenizers` library."""

from pathlib import Path
from typing import Any

from hpcmoe.errors import InputError, JobError
from hpcmoe.files.chat import Chat

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
    if kind != "gpt2" or str(before) not in splits:
        known = ", ".join(f"gpt2/{name}" for name in splits)
        raise InputError(f"{path}: tokenizer {kind}/{before} is not read from GGUF; known: {known}")
    for name in ("add_bos_token", "add_eos_token"):
        if values.get(f"tokenizer.ggml.{name}"):
            raise InputError(f"{path}: tokenizers with {name} are not read from GGUF")
    tokens, kinds = listed(values, "tokens", path, str), listed(values, "token_type", path, int)
    merges = [tuple(pair.split(" ", 1)) for pair in listed(values, "merges", path, str)]
    try:
        tokenizer = Tokenizer(models.BPE({token: n for n, token in enumerate(tokens)}, merges))
    except Exception as error:  # the package has no class of its own for what it cannot take
        raise InputError(f"{path}: tokens and merges do not make a tokenizer ({error})") from None
    bytewise = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splits[before], bytewise])
    tokenizer.decoder = decoders.ByteLevel()
    special = [token for token, sort in zip(tokens, kinds) if sort == CONTROL]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return tokenizer.to_str()


def chat_of(values: dict[str, Any], path: Path) -> str:
    """The chat template of a GGUF file, as model files have it; "" where it has none. Raises `InputError`."""
    template = values.get("tokenizer.chat_template")
    if not template:
        return ""
    if not isinstance(template, str):
        raise InputError(f"{path}: tokenizer.chat_template is not a string")
    tokens, special = listed(values, "tokens", path, str), {}
    for name in ("bos", "eos"):
        number = values.get(f"tokenizer.ggml.{name}_token_id")
        if isinstance(number, int) and 0 <= number < len(tokens):
            special[f"{name}_token"] = tokens[number]
    return Chat(template, special).json()


def listed(values: dict[str, Any], name: str, path: Path, kind: type) -> list[Any]:
    """A list of the tokenizer's metadata, of `kind`. Raises `InputError` where it is missing or none."""
    found = values.get(f"tokenizer.ggml.{name}")
    if not isinstance(found, list) or not all(isinstance(entry, kind) for entry in found):
        raise InputError(f"{path} has no list tokenizer.ggml.{name} of {kind.__name__} in its metadata")
    return found
