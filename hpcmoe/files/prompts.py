"""prompts.h5: `tokens/data` int32 with `tokens/offsets` int64 `[P + 1]`, `id` `[P]`, and `text` and `url` `[P]`.

Made by `hpcmoe prompts` from text lines, or from JSONL (`files.requests`). `url` is that of a batch runner's request,
"" where a prompt was none.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hpcmoe import paths
from hpcmoe.errors import InputError
from hpcmoe.files import chat, h5, vet
from hpcmoe.files.model import Source
from hpcmoe.files.requests import MOST, Request, parse
from hpcmoe.files.tokenizer import Tokenizer
from hpcmoe.spec import ModelSpec

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
    urls: tuple[str, ...] = ()
    """`[P]`, or empty"""

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
        urls = tuple(h5.strings(file, "url", path, len(ids))) if "url" in file else ()
    if len(ids) != len(offsets) - 1:
        raise InputError(f"{path}: {len(ids)} ids for {len(offsets) - 1} prompts: make the file again")
    large = (data < -MOST) | (data >= MOST)  # a cast would make other tokens of them
    if large.any():
        raise InputError(f"{path}: tokens/data has {data[large][0]}, which no vocabulary is large enough for")
    return Prompts(data.astype(np.int32), offsets, tuple(ids), uuid, urls)


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
    requests = _requests(source)
    if not requests:
        raise InputError(f"{source}: there are no prompts in it")
    texts = _rendered(requests, model)
    tokenizer = Tokenizer(model.tokenizer, model.spec.name) if model.tokenizer else None
    tokens = []
    for (where, request), text in zip(requests, texts):
        if request.tokens is not None:
            tokens.append(request.tokens)
        elif tokenizer is None:
            raise InputError(f"{where}: {model.spec.name} has no tokenizer, so prompts must be .jsonl with tokens")
        else:  # a chat template has written all that goes around a text
            tokens.append(np.array(tokenizer.encode(text, special=request.conversation is None), np.int32))
    ids = [str(number) if request.id is None else request.id for number, (_, request) in enumerate(requests)]
    offsets = np.concatenate([[0], np.cumsum([len(t) for t in tokens])]).astype(np.int64)
    check(Prompts(np.concatenate(tokens), offsets, tuple(ids)), model.spec, str(source))
    urls = [request.url for _, request in requests]
    write(target, ids, tokens, texts, urls if any(urls) else ())
    _tell(requests)
    return len(ids)


def _rendered(requests: Sequence[tuple[str, Request]], model: Source) -> list[str]:
    """The text of each, "" where it is given as tokens; conversations by the model's chat template."""
    talks = [(where, request.conversation) for where, request in requests if request.conversation is not None]
    if talks and not model.chat:
        raise InputError(f"{talks[0][0]}: {model.spec.name} has no chat template, so prompts must have text or tokens; "
                         "where its checkpoint has one, run hpcmoe convert again")
    said = iter(chat.render(model.chat, [talk for _, talk in talks], [where for where, _ in talks]) if talks else [])
    texts = [request.text or "" if request.conversation is None else next(said) for _, request in requests]
    for (where, request), text in zip(requests, texts):
        _check_characters(request.id or "", "id", where)
        _check_characters(text, "text", where)
    return texts


def _tell(requests: Sequence[tuple[str, Request]]) -> None:
    other = sorted(set().union(*(request.other for _, request in requests)))
    if other:
        print(f"hpcmoe: warning: {', '.join(other)} of the requests are the job's to say, for all prompts alike: see "
              "[generate] in hpcmoe keys", file=sys.stderr)


def write(path: Path, ids: Sequence[str], tokens: Sequence[np.ndarray], text: Sequence[str] = (),
          urls: Sequence[str] = ()) -> None:
    """A prompts file. Raises `JobError` where it cannot be written."""
    with h5.writing(path, "prompts") as file:
        h5.put_ragged(file, "tokens", tokens, "int32", "tokens of all prompts, one after another")
        h5.put_strings(file, "id", ids, "the user's own name of each prompt")
        if text:
            h5.put_strings(file, "text", text, "text of each prompt")
        if urls:
            h5.put_strings(file, "url", urls, "where a batch runner would send each request")


def _requests(source: Path) -> list[tuple[str, Request]]:
    """Each with its place."""
    lines = paths.read_text(source, InputError, "prompts").split("\n")
    jsonl = source.suffix.lower() in JSONL
    return [(f"{source}, line {n}", parse(line, f"{source}, line {n}") if jsonl else Request(text=line))
            for n, line in enumerate(lines, 1) if line.strip()]


def _check_characters(words: str, name: str, where: str) -> None:
    if "\0" in words or any("\ud800" <= c <= "\udfff" for c in words):
        raise InputError(f"{where}: {name} has a zero or half a surrogate pair, which files cannot hold")

