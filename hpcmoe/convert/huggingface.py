"""Checkpoints in Hugging Face's layout: a folder with config.json and safetensors files, sharded or not."""

import json
import re
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from hpcmoe.convert.families import AHEAD, FAMILIES
from hpcmoe.convert.keys import Keys
from hpcmoe.convert.parts import part_shapes
from hpcmoe.convert.quantised import Tensors, quantisation
from hpcmoe.convert.stored import Part, open_all
from hpcmoe.errors import InputError
from hpcmoe.files import tokenizer
from hpcmoe.files.chat import Chat
from hpcmoe.paths import read_text
from hpcmoe.spec import MOST_LAYERS, ModelSpec, Tensor, tensors
from hpcmoe.spec_table import check

LARGEST = 1 << 28
"""Bytes of a JSON file."""
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
        quantised = quantisation(table.pop("quantization_config", None), folder / "config.json")
        keys = Keys(_with_generation_eos(table, folder), f"{folder / 'config.json'}")
        self.spec: ModelSpec = self._family.spec(keys, folder.resolve().name)
        keys.finish()
        check(self.spec, f"{folder / 'config.json'}")
        self.tokenizer, self.chat = _tokenizer(folder), _chat(folder)
        found = Tensors(folder, open_all(_files(folder)), quantised)
        self._parts = {t.name: self._find(t, found) for t in tensors(self.spec)}
        self._check_nothing_left(found, max(table.get(key) or 0 for key in AHEAD))

    def _find(self, tensor: Tensor, found: Tensors) -> list[Part]:
        """The checkpoint's tensors that make up one of ours."""
        for names in (self._family.names, *self._family.others):
            theirs = [name.format(n=tensor.layer, e=tensor.expert) for name in names.get(tensor.kind, ())]
            parts = [found.part(name, tensor.expert) for name in theirs]
            if parts and all(parts):
                known = [part for part in parts if part]
                self._check_shapes(tensor, known)
                return known
        wanted = [name.format(n=tensor.layer, e=tensor.expert) for name in self._family.names[tensor.kind]]
        missing = next(name for name in wanted if not found.part(name, tensor.expert))
        raise InputError(f"{self.folder}: no file has the tensor {missing} ({tensor.name} of {self.spec.name})")

    def _check_shapes(self, tensor: Tensor, parts: list[Part]) -> None:
        for part, wanted in zip(parts, part_shapes(self.spec, tensor, len(parts))):
            first = () if part.expert is None else (self.spec.experts,)
            stored = part.values.shape[:len(first)] + part.shape
            if stored != first + wanted:
                raise InputError(f"{self.folder}: {part.values.name} has shape {stored}, config.json says "
                                 f"{first + wanted}")

    def _check_nothing_left(self, found: Tensors, ahead: int) -> None:
        behind = tuple(f"model.layers.{self.spec.layers + n}." for n in range(min(ahead, MOST_LAYERS)))
        unknown = sorted(name for name in found.unused() if not PASSED_OVER.match(name))
        left = [name for name in unknown if not name.startswith(behind)]
        if left and not (self.spec.tied_head and left == ["lm_head.weight"]):  # some files hold it a second time
            raise InputError(f"{self.folder}: the tensor {left[0]} is not known to this converter, which does not "
                             "leave out what it cannot place")
        if len(unknown) > len(left):
            names = ", ".join(name.rstrip(".") for name in behind)
            print(f"hpcmoe: note: {names} of {self.folder} is left out: it predicts tokens further ahead",
                  file=sys.stderr)

    def blocks(self, tensor: Tensor) -> Iterator[np.ndarray]:
        """See `Source`."""
        blocks = chain.from_iterable(part.blocks() for part in self._parts[tensor.name])
        order = self._family.order(self.spec, tensor)
        return blocks if order is None else iter([np.concatenate(list(blocks))[order]])


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


def _files(folder: Path) -> list[Path]:
    """The files of weights."""
    index = folder / "model.safetensors.index.json"
    names = _named(index) if index.exists() else sorted(p.name for p in folder.glob("*.safetensors"))
    if not names:
        raise InputError(f"{folder} has no .safetensors files; other formats of weights are not read")
    for name in names:
        if not (folder / name).exists():
            raise InputError(f"{folder / name} does not exist, and {index.name} names it")
    return [folder / name for name in names]


def _named(index: Path) -> list[str]:
    """The files that an index names. Raises `InputError` where one of them is not in its folder."""
    table = _json(index).get("weight_map", {})
    names = list(table.values()) if isinstance(table, dict) else [table]
    for name in names:
        if not isinstance(name, str) or name in ("", ".", "..") or {"/", "\\", "\0"} & set(name):
            raise InputError(f"{index}: weight_map has {name!r}, which is not a file of its folder")
    return sorted(set(names))
