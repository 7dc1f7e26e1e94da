"""The rotary positions of a checkpoint: its keys in the old spelling (rope_theta, rope_scaling) or the new one
(rope_parameters)."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from hpcmoe.convert.keys import Keys
from hpcmoe.spec import Yarn


class Rotary(NamedTuple):
    """What the keys say."""

    theta: float
    partial: float
    """the part of a head that turns"""
    yarn: Yarn | None
    stretch: float
    """factor on scores that some families take, behind a stretch: `mscale_all_dim`'s, squared"""


def rotary(keys: Keys, theta: float, partial: float = 1.0, missing: Mapping[str, Any] | None = None) -> Rotary:
    """The rotary positions; `theta`, `partial` and a table in place of a `missing` one are the family's, where the keys
    do not say."""
    context = keys.peek("max_position_embeddings")
    nested = keys.nested("rope_parameters", "rope_scaling", missing=missing or {})
    theta, partial = _either(keys, nested, "rope_theta", theta), _either(keys, nested, "partial_rotary_factor", partial)
    kind = nested.take("rope_type", "type", default="default")
    if kind not in ("default", "yarn"):
        raise nested.refused("rope_type", kind, "default or yarn")
    yarn, stretch = _yarn(nested, context) if kind == "yarn" else (None, 1.0)
    nested.finish()
    return Rotary(theta, partial, yarn, stretch)


def _either(keys: Keys, nested: Keys, name: str, default: float) -> float:
    """A number of the table, or outside of it. Raises `InputError` where they differ."""
    outside = keys.number(name, default=math.nan)
    inside = nested.number(name, default=default if math.isnan(outside) else outside)
    if not math.isnan(outside) and inside != outside:
        raise keys.wrong(name, outside, f"{inside}, as in its rope_parameters")
    return inside


def _yarn(keys: Keys, context: int) -> tuple[Yarn, float]:
    """With its magnitude as transformers has it: the ratio of the two mscale, where both are given."""
    before = keys.whole("original_max_position_embeddings", default=context, least=1)
    factor = keys.number("factor", default=context / before)
    one, all_ = keys.number("mscale", default=0.0), keys.number("mscale_all_dim", default=0.0)
    usual = _magnitude(factor, one) / _magnitude(factor, all_) if one and all_ else _magnitude(factor, 1)
    yarn = Yarn(factor, before, keys.number("beta_fast", default=32.0), keys.number("beta_slow", default=1.0),
                keys.flag("truncate", True), keys.number("attention_factor", default=usual))
    return yarn, _magnitude(factor, all_) ** 2 if all_ else 1.0


def _magnitude(factor: float, scale: float) -> float:
    """Peng et al., "YaRN", 2023, section 3.4."""
    return 0.1 * scale * math.log(factor) + 1 if factor > 1 else 1.0
