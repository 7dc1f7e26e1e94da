"""Checkpoints in Hugging Face's layout: a folder with config.json and safetensors files, sharded or not."""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from hpcmoe.convert.families import FAMILIES
from hpcmoe.convert.keys import Keys
from hpcmoe.convert.parts import checked, part_shapes
from hpcmoe.errors import InputError, JobError
from hpcmoe.files import tokenizer
from hpcmoe.files.chat import Chat
from hpcmoe.files.model import rows_per_block
from hpcmoe.paths import read_text
from hpcmoe.spec import ModelSpec, Tensor, tensors
from hpcmoe.spec_table import check

LARGEST = 1 << 28
"""Bytes of a JSON file."""
READ = {"BF16", "F16", "F32"}
"""The number formats that are read."""
PASSED_OVER = re.compile(r".*\.rotary_emb\.inv_freq$")
"""Tensors that follow from the config."""


class HuggingFaceCheckpoint:
    """A checkpoint folder. A `files.model.Source`. Raises `InputError`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        table = _json(folder / "config.json")
        kind = str(table.get("model_type"))
        if kind not in FAMILIES:
            raise InputError(f"{folder}: model_type {kind!r} is not known; {', '.join(sorted(FAMILIES))} are")
        self._family = FAMILIES[kind]
        keys = Keys(_with_generation_eos(table, folder), f"{folder / 'config.json'}")
        self.spec: ModelSpec = self._family.spec(keys, folder.resolve().name)
        keys.finish()
        check(self.spec, f"{folder / 'config.json'}")
        self.tokenizer, self.chat = _tokenizer(folder), _chat(folder)
        self._files = _open_all(folder)
        self._parts = {t.name: self._find(t) for t in tensors(self.spec)}
        self._check_nothing_left()

    def _find(self, tensor: Tensor) -> list[tuple[str, int | None]]:
        """The checkpoint's tensors that make up one of ours, each with the index to take of its first dimension."""
        for names in (self._family.names, self._family.fused):
            found = [name.format(n=tensor.layer, e=tensor.expert) for name in names.get(tensor.kind, ())]
            if found and all(name.removesuffix("[e]") in self._files for name in found):
                parts = [(name.removesuffix("[e]"), tensor.expert if name.endswith("[e]") else None) for name in found]
                self._check_shapes(tensor, parts)
                return parts
        wanted = [name.format(n=tensor.layer, e=tensor.expert) for name in self._family.names[tensor.kind]]
        missing = next(name for name in wanted if name not in self._files)
        raise InputError(f"{self.folder}: no file has the tensor {missing} ({tensor.name} of {self.spec.name})")

    def _check_shapes(self, tensor: Tensor, parts: list[tuple[str, int | None]]) -> None:
        for (name, index), wanted in zip(parts, part_shapes(self.spec, tensor, len(parts))):
            part = self._files[name].get_slice(name)
            if part.get_dtype() not in READ:
                raise InputError(f"{self.folder}: {name} is {part.get_dtype()}, which is not read; "
                                 f"{', '.join(sorted(READ))} are")
            if index is not None:
                wanted = (self.spec.experts, *wanted)
            found = tuple(part.get_shape())
            if found != wanted:
                raise InputError(f"{self.folder}: {name} has shape {found}, config.json says {wanted}")

    def _check_nothing_left(self) -> None:
        used = {name for parts in self._parts.values() for name, _ in parts}
        unknown = sorted(name for name in set(self._files) - used if not PASSED_OVER.match(name))
        if self.spec.tied_head and unknown == ["lm_head.weight"]:
            return  # some files hold the tied head a second time
        if unknown:
            raise InputError(f"{self.folder}: the tensor {unknown[0]} is not known to this converter, which does not "
                             "leave out what it cannot place")

    def blocks(self, tensor: Tensor) -> Iterator[np.ndarray]:
        """See `Source`."""
        for name, index in self._parts[tensor.name]:
            part = self._files[name].get_slice(name)
            shape = tuple(part.get_shape())[0 if index is None else 1:]
            step = rows_per_block(shape)
            for row in range(0, shape[0], step):
                rows = slice(row, min(row + step, shape[0]))  # safetensors takes no slice past the end
                block = part[rows] if index is None else part[index:index + 1, rows][0]
                yield checked(block, name, self.folder)


def _json(path: Path) -> dict[str, Any]:
    text = read_text(path, InputError, "checkpoint's file", LARGEST)
    try:
        table = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON ({error})") from None
    if not isinstance(table, dict):
        raise InputError(f"{path} should be a JSON object")
    return table


def _with_generation_eos(table: dict[str, Any], folder: Path) -> dict[str, Any]:
    """End tokens as generation_config.json has them, if it is there: chat models often have more of them."""
    path = folder / "generation_config.json"
    given = _json(path).get("eos_token_id") if path.exists() else None
    return table if given is None else table | {"eos_token_id": given}


def _tokenizer(folder: Path) -> str:
    path = folder / "tokenizer.json"
    if path.exists():
        text = read_text(path, InputError, "tokenizer", LARGEST)
        tokenizer.check(text, str(path))
        return text
    print(f"hpcmoe: warning: {folder} has no tokenizer.json: prompts must be given as tokens, and texts stay empty",
          file=sys.stderr)
    return ""


def _chat(folder: Path) -> str:
    """The chat template; of several that tokenizer_config.json names, the default one."""
    path, alone = folder / "tokenizer_config.json", folder / "chat_template.jinja"
    table = _json(path) if path.exists() else {}
    found = read_text(alone, InputError, "chat template", LARGEST) if alone.exists() else table.get("chat_template")
    if isinstance(found, list):
        named = {one.get("name"): one.get("template") for one in found if isinstance(one, dict)}
        found = named.get("default")
    if found is None:
        return ""
    if not isinstance(found, str):
        raise InputError(f"{path}: chat_template should be a string, or a list that has one named default")
    tokens = {}
    for name, value in table.items():
        text = value.get("content") if isinstance(value, dict) else value
        if name.endswith("_token") and isinstance(text, str):
            tokens[name] = text
    return Chat(found, tokens).json()


def _open_all(folder: Path) -> dict[str, Any]:
    """Tensor name -> the open safetensors file that holds it."""
    try:
        from safetensors import SafetensorError, safe_open
    except ModuleNotFoundError:
        raise JobError("Hugging Face checkpoints need the safetensors package: pip install 'hpcmoe[convert]'") from None
    index = folder / "model.safetensors.index.json"
    names = _named(index) if index.exists() else sorted(p.name for p in folder.glob("*.safetensors"))
    if not names:
        raise InputError(f"{folder} has no .safetensors files; other formats of weights are not read")
    files: dict[str, Any] = {}
    for name in names:
        try:
            file = safe_open(folder / name, framework="numpy")
        except FileNotFoundError:
            raise InputError(f"{folder / name} does not exist, and {index.name} names it") from None
        except (SafetensorError, OSError) as error:
            raise InputError(f"{folder / name} is not a whole safetensors file ({error})") from None
        files |= dict.fromkeys(file.keys(), file)
    return files


def _named(index: Path) -> list[str]:
    """The files that an index names. Raises `InputError` where one of them is not in its folder."""
    table = _json(index).get("weight_map", {})
    names = list(table.values()) if isinstance(table, dict) else [table]
    for name in names:
        if not isinstance(name, str) or name in ("", ".", "..") or {"/", "\\", "\0"} & set(name):
            raise InputError(f"{index}: weight_map has {name!r}, which is not a file of its folder")
    return sorted(set(names))
