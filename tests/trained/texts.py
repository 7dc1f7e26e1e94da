"""The texts that the small models learn from, those that are held out, and how a trained one is written down."""

import hashlib
import json
import sysconfig
from collections.abc import Mapping, Sequence
from pathlib import Path

HELD_OUT = 20
"""One file of so many is held out."""
LONGEST = 1 << 20
"""Bytes of a file: larger ones are tables of data."""


def python_sources() -> list[Path]:
    """Python's own standard library (PSF licence), without what was installed beside it."""
    top = Path(sysconfig.get_paths()["stdlib"])
    return [path for path in sorted(top.rglob("*.py")) if not {"site-packages", "dist-packages"} & set(path.parts)]


def held_out(path: Path) -> bool:
    """Whether a file is never trained on: by its name alone, so that other machines and versions say the same."""
    return hashlib.sha256(path.name.encode()).digest()[0] % HELD_OUT == 0


def read(paths: Sequence[Path]) -> dict[Path, bytes]:
    """Texts by file; empty ones, large ones and what is not UTF-8 are left out."""
    found = {}
    for path in paths:
        text = path.read_bytes()
        try:
            text.decode()
        except UnicodeDecodeError:
            continue
        if 0 < len(text) <= LONGEST:
            found[path] = text
    return found


def write_checkpoint(folder: Path, config: Mapping[str, object],
                     tensors: Mapping[str, tuple[Sequence[int], bytes]]) -> None:
    """A folder in Hugging Face's layout: config.json, and the tensors, shape and bfloat16 bits, in a safetensors file.

    That is a JSON header behind its own length (8 bytes), and the values.
    """
    header, at = {}, 0
    for name, (shape, bits) in tensors.items():
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, at + len(bits)]}
        at += len(bits)
    words = json.dumps(header).encode()
    words += b" " * (-len(words) % 8)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(words).to_bytes(8, "little") + words)
        file.writelines(bits for _, bits in tensors.values())
