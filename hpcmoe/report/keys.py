"""The page that `keys` prints, which is docs/keys.md."""

from collections.abc import Iterator
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any

from hpcmoe.config import Job

HEAD = """# The keys of a job file

Printed by `hpcmoe keys`. Every key has a default but the first three; `--set section.key=value` overrides one.
"""


def page() -> str:
    """Every key of a job with its default and meaning, as a Markdown table that reads well in a terminal too."""
    rows = [("key", "default", "meaning"), *_rows(Job, "")]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths)) + " |" for row in rows]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return HEAD + "\n" + "\n".join(lines) + "\n"


def _rows(table: Any, section: str) -> Iterator[tuple[str, str, str]]:
    for f in fields(table):
        default = f.default_factory() if f.default_factory is not MISSING else f.default
        if is_dataclass(default):
            yield from _rows(default, f"{f.name}.")
        else:
            yield f"`{section}{f.name}`", _default(default), _meaning(f)


def _default(value: Any) -> str:
    if value is MISSING:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return str(list(value))
    return f'"{value}"' if isinstance(value, str) else f"{value}"


def _meaning(f: Field) -> str:
    choices = f.metadata["choices"]
    return f.metadata["help"] + (f" ({', '.join(choices)})" if choices else "")
