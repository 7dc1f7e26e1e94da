"""The verbs `convert` and `init`: from a source of weights to a model file."""

import hashlib
from pathlib import Path
from typing import Any

from hpcmoe import __version__, spec_table, tables
from hpcmoe.convert.gguf import GgufCheckpoint
from hpcmoe.convert.huggingface import HuggingFaceCheckpoint
from hpcmoe.convert.making import Given, Order, make
from hpcmoe.convert.upcycle import Copies, Slices
from hpcmoe.errors import InputError, JobError
from hpcmoe.files import vet
from hpcmoe.files.drawn import Drawn
from hpcmoe.files.model import Source, apart
from hpcmoe.paths import check_output

READ = ("*.json", "*.jinja", "*.safetensors")
"""The files of a checkpoint's folder."""


def convert(source: Path, output: Path, dtype: str, upcycle: str | None, experts: int, top_k: int,
            seed: int, overwrite: bool = False) -> int:
    """Writes the checkpoint at `source` as a model file; returns the exit code. Collective, as `making.make` is.

    Raises `InputError`, `JobError`.
    """
    check_output(output, source, *(file for kind in READ for file in source.glob(kind)))
    if upcycle == "copies" and top_k > experts:
        raise JobError(f"--top-k {top_k} is more than --experts {experts}")
    options = {"upcycle": upcycle, "experts": experts, "top-k": top_k, "seed": seed} if upcycle else {}

    def opened() -> Given:
        found = open_checkpoint(source)
        vet.end()
        if upcycle and found.spec.moe:
            raise JobError(f"--upcycle makes experts of a dense model, and {found.spec.name} has experts already")
        asked = options | {"source": _marks(source)}
        if upcycle == "copies":
            copies = Copies(found, experts, top_k, seed)
            return _given(copies, dtype, asked, copies.same)
        return _given(Slices(found, experts) if upcycle else found, dtype, asked)
    return make(Order(output, dtype, overwrite, opened))


def init(path: Path, output: Path, seed: int, dtype: str, overwrite: bool = False) -> int:
    """Writes random weights for the spec at `path`; returns the exit code. Collective, as `making.make` is.

    Raises `InputError`, `JobError`.
    """
    check_output(output, path)

    def opened() -> Given:
        return _given(Drawn(spec_table.load(path), seed), dtype, {"seed": seed})
    return make(Order(output, dtype, overwrite, opened))


def open_checkpoint(source: Path) -> Source:
    """A GGUF file or a folder in Hugging Face's layout. Raises `InputError`."""
    if not source.exists():
        raise InputError(f"{source} does not exist")
    if source.is_dir():
        return HuggingFaceCheckpoint(source)
    if source.suffix.lower() == ".gguf":
        return GgufCheckpoint(source)
    raise InputError(f"{source}: should be a .gguf file, or a folder with config.json and .safetensors files")


def _given(source: Source, dtype: str, asked: dict[str, Any], same=apart) -> Given:
    texts = hashlib.blake2b((source.tokenizer + "\0" + source.chat).encode(), digest_size=16).hexdigest()
    return Given(source, same, {"version": __version__, "dtype": dtype, "model": tables.dump(source.spec),
                                "tokenizer": texts, **asked})


def _marks(source: Path) -> list[list[Any]]:
    """What the files of a checkpoint are: name, size, time of the last change."""
    files = sorted(file for kind in READ for file in source.glob(kind)) if source.is_dir() else [source]
    return [[file.name, found.st_size, found.st_mtime_ns] for file in files for found in [file.stat()]]
