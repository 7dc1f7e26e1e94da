"""A checkpoint's own settings, read key by key, so that no key is passed over in silence."""

from collections.abc import Mapping
from typing import Any

from hpcmoe.errors import InputError

REQUIRED = object()
MOST = 2**63
"""Numbers are up to it."""

NO_EFFECT = frozenset("""
    _name_or_path architectures attention_dropout auto_map aux_loss_alpha bos_token_id chunk_size_feed_forward dtype
    ep_size id2label initializer_range is_decoder is_encoder_decoder label2id max_length min_length model_type
    output_attentions output_hidden_states output_router_logits pad_token_id pretraining_tp problem_type return_dict
    router_aux_loss_coef router_jitter_noise seq_aux torch_dtype transformers_version use_cache
""".split())
"""Keys that do not change what a model answers."""


class Keys:
    """The keys, of a config.json or of a GGUF file's metadata, that have not been read yet."""

    def __init__(self, table: dict[str, Any], where: str) -> None:
        self._left, self._where = dict(table), where

    def take(self, *names: str, default: Any = REQUIRED) -> Any:
        """The value under the first of `names` that is there and not null, else `default`. Raises `InputError`."""
        found = {name: self._left.pop(name, None) for name in names}
        given = {name: value for name, value in found.items() if value is not None}
        value = next(iter(given.values()), default)
        if any(other != value for other in given.values()):
            raise InputError(f"{self._where}: {' and '.join(given)} contradict each other")
        if value is REQUIRED:
            raise InputError(f"{self._where} has no key {names[0]}")
        return value

    def whole(self, *names: str, default: Any = REQUIRED, least: int = 0) -> int:
        """The same, checked to be a whole number of at least `least`."""
        value = self.take(*names, default=default)
        if type(value) is not int or not least <= value <= MOST:
            raise self.wrong(names[0], value, f"a whole number of at least {least}")
        return value

    def number(self, *names: str, default: Any = REQUIRED) -> float:
        """The same, checked to be a number."""
        value = self.take(*names, default=default)
        if type(value) not in (int, float) or abs(value) > MOST:
            raise self.wrong(names[0], value, "a number")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        """The same, checked to be true or false."""
        value = self.take(name, default=default)
        if type(value) is not bool:
            raise self.wrong(name, value, "true or false")
        return value

    def items(self, name: str) -> list[Any]:
        """The same, checked to be a list; empty where it is missing."""
        value = self.take(name, default=[])
        if not isinstance(value, list):
            raise self.wrong(name, value, "a list")
        return value

    def peek(self, name: str) -> int:
        """A whole number that is read elsewhere too."""
        value = self.whole(name)
        self._left[name] = value
        return value

    def only(self, name: str, *values: Any) -> None:
        """Raises `InputError` where the key is there with another value than `values`."""
        value = self._left.pop(name, None)
        if value is not None and value not in values:
            raise self.refused(name, value, " or ".join(map(repr, values)))

    def wrong(self, name: str, value: Any, instead: str) -> InputError:
        """The error for a key whose value cannot be."""
        return InputError(f"{self._where}: {name} = {value!r} should be {instead}")

    def refused(self, name: str, value: Any, instead: str) -> InputError:
        """The error for a key whose value this converter does not support."""
        return InputError(f"{self._where}: {name} = {value!r} is not supported; {instead} is")

    def nested(self, *names: str, missing: Mapping[str, Any]) -> "Keys":
        """The table under the first of `names` that is there; `missing` where none is."""
        table = self.take(*names, default=dict(missing))
        if not isinstance(table, dict):
            raise self.wrong(names[0], table, "a table")
        return Keys(table, f"{self._where}, {names[0]}")

    def null(self, name: str) -> bool:
        """Whether the key is there, and null."""
        return name in self._left and self._left[name] is None

    def eos(self) -> tuple[int, ...]:
        """The end tokens: none, one, or several."""
        value = self.take("eos_token_id", default=[])
        tokens = value if isinstance(value, list) else [value]
        if any(type(token) is not int for token in tokens):
            raise self.wrong("eos_token_id", value, "a whole number or a list of them")
        return tuple(tokens)

    def finish(self) -> None:
        """Raises `InputError` where a key is left that may change what the model answers."""
        unknown = sorted(set(self._left) - NO_EFFECT)
        if unknown:
            raise InputError(f"{self._where}: the key {unknown[0]} = {self._left[unknown[0]]!r} is not known to this "
                             "converter, which does not guess what it means")
