"""A checkpoint's config.json, read key by key, so that no key is passed over in silence."""

from typing import Any

from hpcmoe.errors import InputError

REQUIRED = object()

NO_EFFECT = frozenset("""
    _name_or_path architectures attention_dropout bos_token_id chunk_size_feed_forward dtype id2label initializer_range
    is_decoder is_encoder_decoder label2id max_length min_length model_type output_attentions output_hidden_states
    output_router_logits pad_token_id problem_type return_dict router_aux_loss_coef router_jitter_noise torch_dtype
    transformers_version use_cache
""".split())
"""Keys that do not change what a model answers."""


class Keys:
    """The keys of config.json that have not been read yet."""

    def __init__(self, table: dict[str, Any], where: str) -> None:
        self._left, self._where = dict(table), where

    def take(self, *names: str, default: Any = REQUIRED) -> Any:
        """The value under the first of `names` that is there and not null, else `default`. Raises `InputError`."""
        found = [self._left.pop(name, None) for name in names]
        value = next((v for v in found if v is not None), default)
        if value is REQUIRED:
            raise InputError(f"{self._where} has no key {names[0]}")
        return value

    def whole(self, *names: str, default: Any = REQUIRED) -> int:
        """The same, checked to be a whole number."""
        value = self.take(*names, default=default)
        if type(value) is not int:
            raise InputError(f"{self._where}: {names[0]} = {value!r} should be a whole number")
        return value

    def number(self, *names: str, default: Any = REQUIRED) -> float:
        """The same, checked to be a number."""
        value = self.take(*names, default=default)
        if type(value) not in (int, float):
            raise InputError(f"{self._where}: {names[0]} = {value!r} should be a number")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        """The same, checked to be true or false."""
        value = self.take(name, default=default)
        if type(value) is not bool:
            raise InputError(f"{self._where}: {name} = {value!r} should be true or false")
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

    def refused(self, name: str, value: Any, instead: str) -> InputError:
        """The error for a key whose value this converter does not support."""
        return InputError(f"{self._where}: {name} = {value!r} is not supported; {instead} is")

    def rope_theta(self, default: float) -> float:
        """The base of the rotary frequencies, in the old spelling (rope_theta) or the new (rope_parameters)."""
        nested = self.take("rope_parameters", "rope_scaling", default={})
        kind = nested.get("rope_type", nested.get("type", "default"))
        if kind != "default":
            raise self.refused("rope_type", kind, "'default'")
        return float(nested.get("rope_theta", self.number("rope_theta", default=default)))

    def eos(self) -> tuple[int, ...]:
        """The end tokens: none, one, or several."""
        value = self.take("eos_token_id", default=[])
        return tuple(value) if isinstance(value, list) else (int(value),)

    def finish(self) -> None:
        """Raises `InputError` where a key is left that may change what the model answers."""
        unknown = sorted(set(self._left) - NO_EFFECT)
        if unknown:
            raise InputError(f"{self._where}: the key {unknown[0]} = {self._left[unknown[0]]!r} is not known to this "
                             "converter, which does not guess what it means")
