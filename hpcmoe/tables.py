"""A TOML table as a frozen dataclass, and back. Strict: an unknown key names the nearest known one."""

import difflib
import tomllib
import types
import typing
from dataclasses import MISSING, asdict, field, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

import tomli_w

from hpcmoe import paths
from hpcmoe.errors import HpcmoeError

Table = TypeVar("Table")

LARGEST = 1 << 20
"""Bytes of a TOML file."""


class Bad(Exception):
    """A key that does not fit, with its dotted path. The caller turns it into its own error."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path}: {reason}" if path else reason)


def key(default: Any = MISSING, *, help: str, choices: tuple[str, ...] = (),
        least: float | None = None, most: float | None = None) -> Any:
    """A field of a table: its default (none means required), its meaning, and what values it takes."""
    metadata = {"help": help, "choices": choices, "least": least, "most": most}
    if default is MISSING:
        return field(metadata=metadata)
    if is_dataclass(default):  # a nested table whose keys all have defaults
        return field(default_factory=lambda: default, metadata=metadata)
    return field(default=default, metadata=metadata)


def parse(text: str) -> dict:
    """TOML text -> dict. Raises `Bad`."""
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # also where numbers or brackets are beyond Python's limits
        raise Bad("", f"not valid TOML: {error}") from None


def read(path: Path, error: type[HpcmoeError], what: str) -> dict:
    """The TOML file at `path` -> dict. Raises `error`, naming `what` it should have been."""
    text = paths.read_text(path, error, what, LARGEST)
    try:
        return parse(text)
    except Bad as bad:
        raise error(f"{what} {path} is {bad}") from None


def build(cls: type[Table], table: dict, where: str = "") -> Table:
    """`table` as a `cls`; `where` is the dotted path so far. Raises `Bad`."""
    if not isinstance(table, dict):
        raise Bad(where, f"should be a table, [{where}]")
    known = {f.name: f for f in fields(cls)}  # type: ignore[arg-type]
    hints = typing.get_type_hints(cls)
    for name in table:
        if name not in known:
            raise Bad(_join(where, name), f"unknown key{_nearest(name, known)}")
    values = {}
    for name, f in known.items():
        path = _join(where, name)
        if name in table:
            values[name] = _convert(hints[name], table[name], path)
            _check_range(values[name], f.metadata, path)
        elif f.default is MISSING and f.default_factory is MISSING:
            raise Bad(path, f"missing: {f.metadata.get('help', 'required')}")
    return cls(**values)


def dump(value: Any) -> str:
    """A dataclass as TOML text; fields that are None are left out."""
    return tomli_w.dumps(plain(value))


def plain(value: Any) -> dict:
    """A dataclass as the table that `build` makes it of; fields that are None are left out."""
    return _plain(asdict(value))


def _plain(table: dict) -> dict:
    out: dict = {}
    for name, value in table.items():
        if isinstance(value, dict):
            out[name] = _plain(value)
        elif isinstance(value, tuple):
            out[name] = list(value)
        elif value is not None:
            out[name] = value
    return out


def _join(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _nearest(name: str, known: typing.Iterable[str]) -> str:
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {found[0]}?" if found else f"; known here: {', '.join(known)}"


def _convert(hint: Any, value: Any, path: str) -> Any:
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    for option in options:
        if is_dataclass(option):
            return build(typing.cast(type, option), value, path)
        if option is float and type(value) is int and abs(value) < 2**63:
            return float(value)
        if option is tuple or typing.get_origin(option) is tuple:
            of = float if float in typing.get_args(option) else int
            if isinstance(value, list) and all(type(v) is int or type(v) is of for v in value):
                return tuple(map(of, value))
        elif type(value) is option:
            return value
    words = {int: "a whole number", float: "a number", str: "a string", bool: "true or false",
             tuple[float, ...]: "a list of numbers"}
    expected = " or ".join(words.get(o, "a list of whole numbers") for o in options if o is not types.NoneType)
    raise Bad(path, f"should be {expected}, not {value!r}")


def _check_range(value: Any, metadata: typing.Mapping, path: str) -> None:
    choices, least, most = (metadata.get(k) for k in ("choices", "least", "most"))
    if choices and value not in choices:
        raise Bad(path, f"should be one of {', '.join(choices)}, not {value!r}")
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if least is not None and not value >= least:
            raise Bad(path, f"should be at least {least}, not {value}")
        if most is not None and not value <= most:
            raise Bad(path, f"should be at most {most}, not {value}")
