"""prompts.h5: `tokens/data` int32 with `tokens/offsets` int64 `[P + 1]`, `id` `[P]`, and `text` `[P]`.

Made by `hpcmoe prompts` from text lines, or from JSONL with `id` and `text` or `tokens`.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hpcmoe import paths
from hpcmoe.errors import InputError
from hpcmoe.files import h5, vet
from hpcmoe.files.model import Source
from hpcmoe.files.tokenizer import Tokenizer
from hpcmoe.spec import ModelSpec

MOST = 2**31
"""Tokens are below it: they are stored as int32."""
JSONL = (".jsonl", ".ndjson")
"""Endings of files with a JSON object a line."""


@dataclass(frozen=True)
class Prompts:
    """P prompts."""

    data: np.ndarray
    """int32, the tokens of all prompts"""
    offsets: np.ndarray
    """`[P + 1]` int64"""
    ids: tuple[str, ...]
    uuid: str = ""

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, prompt: int) -> np.ndarray:
        """The tokens of one prompt, int32."""
        return self.data[self.offsets[prompt]:self.offsets[prompt + 1]]

    @property
    def lengths(self) -> np.ndarray:
        """`[P]` int64"""
        return np.diff(self.offsets)

    def called(self, prompt: int) -> str:
        """What errors call a prompt, in one line."""
        name = self.ids[prompt]
        return f"prompt {prompt} (id {name if name.isprintable() else repr(name)})"


def read(path: Path) -> Prompts:
    """The prompts in `path`. Raises `InputError`."""
    vet.check(path, "prompts")
    with h5.reading(path, "prompts") as file:
        data, offsets = h5.ragged(file, "tokens", path)
        ids = h5.strings(file, "id", path)
        uuid = str(file.attrs.get("uuid", ""))
    if len(ids) != len(offsets) - 1:
        raise InputError(f"{path}: {len(ids)} ids for {len(offsets) - 1} prompts: make the file again")
    large = (data < -MOST) | (data >= MOST)  # a cast would make other tokens of them
    if large.any():
        raise InputError(f"{path}: tokens/data has {data[large][0]}, which no vocabulary is large enough for")
    return Prompts(data.astype(np.int32), offsets, tuple(ids), uuid)


def check(prompts: Prompts, spec: ModelSpec, where: str, room: int = 1) -> None:
    """Raises `InputError` where `spec` cannot take these prompts and `room` tokens more, naming the first misfit."""
    if not len(prompts):
        raise InputError(f"{where}: there are no prompts in it")
    for number, length in enumerate(prompts.lengths):
        if length == 0:
            raise InputError(f"{where}: {prompts.called(number)} is empty")
        if length + room > spec.context:
            raise InputError(f"{where}: {prompts.called(number)} has {length} tokens, and the context of "
                             f"{spec.name} is {spec.context}: shorten it to {spec.context - room} or fewer")
    wrong = np.flatnonzero((prompts.data < 0) | (prompts.data >= spec.vocabulary))
    if len(wrong):
        number = int(np.searchsorted(prompts.offsets, wrong[0], side="right")) - 1
        raise InputError(f"{where}: {prompts.called(number)} has the token {prompts.data[wrong[0]]}, outside the "
                         f"vocabulary of {spec.vocabulary}: was it made for another model?")


def convert(source: Path, target: Path, model: Source) -> int:
    """Writes the prompts of a text or JSONL file for `model`; returns how many. Raises `InputError`, `JobError`."""
    records = _records(source)
    if not records:
        raise InputError(f"{source}: there are no prompts in it")
    tokenizer = Tokenizer(model.tokenizer, model.spec.name) if model.tokenizer else None
    tokens = []
    for where, record in records:
        if "tokens" in record:
            tokens.append(_given(record["tokens"], where))
        elif tokenizer is None:
            raise InputError(f"{where}: {model.spec.name} has no tokenizer, so prompts must be .jsonl with tokens")
        else:
            tokens.append(np.array(tokenizer.encode(record["text"]), np.int32))
    ids = [str(number if record.get("id") is None else record["id"]) for number, (_, record) in enumerate(records)]
    offsets = np.concatenate([[0], np.cumsum([len(t) for t in tokens])]).astype(np.int64)
    check(Prompts(np.concatenate(tokens), offsets, tuple(ids)), model.spec, str(source))
    write(target, ids, tokens, [record.get("text", "") for _, record in records])
    return len(ids)


def write(path: Path, ids: Sequence[str], tokens: Sequence[np.ndarray], text: Sequence[str] = ()) -> None:
    """A prompts file. Raises `JobError` where it cannot be written."""
    with h5.writing(path, "prompts") as file:
        h5.put_ragged(file, "tokens", tokens, "int32", "tokens of all prompts, one after another")
        h5.put_strings(file, "id", ids, "the user's own name of each prompt")
        if text:
            h5.put_strings(file, "text", text, "text of each prompt")


def _records(source: Path) -> list[tuple[str, dict]]:
    lines = paths.read_text(source, InputError, "prompts").split("\n")
    jsonl = source.suffix.lower() in JSONL
    found = [(f"{source}, line {n}", _record(line, f"{source}, line {n}") if jsonl else {"text": line})
             for n, line in enumerate(lines, 1) if line.strip()]
    for where, record in found:
        _check_characters(record, where)
    return found


def _check_characters(record: dict, where: str) -> None:
    for name in ("id", "text"):
        words = str(record.get(name, ""))
        if "\0" in words or any("\ud800" <= c <= "\udfff" for c in words):
            raise InputError(f"{where}: {name} has a zero or half a surrogate pair, which files cannot hold")


def _record(line: str, where: str) -> dict:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:  # also where numbers or brackets are beyond Python's limits
        raise InputError(f"{where}: not JSON ({error})") from None
    if not isinstance(record, dict) or not ({"text", "tokens"} & set(record)):
        raise InputError(f"{where}: should be an object with text or tokens, and id where wanted")
    if not isinstance(record.get("text", ""), str):
        raise InputError(f"{where}: text should be a string")
    if type(record.get("id", "")) not in (str, int, float, type(None)):
        raise InputError(f"{where}: id should be a string or a number")
    return record


def _given(tokens: object, where: str) -> np.ndarray:
    if not isinstance(tokens, list) or not all(type(t) is int and abs(t) < MOST for t in tokens):
        raise InputError(f"{where}: tokens should be a list of whole numbers")
    return np.array(tokens, np.int32)
