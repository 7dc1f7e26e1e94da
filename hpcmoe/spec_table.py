"""A ModelSpec from a TOML table: what must fit together."""

from pathlib import Path

from hpcmoe import tables
from hpcmoe.errors import HpcmoeError, InputError
from hpcmoe.spec import MOST_IN_ALL, Attention, Dense, ModelSpec, Moe
from hpcmoe.tables import Bad


def from_table(table: dict) -> ModelSpec:
    """A ModelSpec from parsed TOML. Raises `tables.Bad`."""
    spec = tables.build(ModelSpec, table)
    m, d = spec.moe, spec.dense
    _check_attention(spec.attention, spec.layers)
    if m and m.top_k > m.experts:
        raise Bad("moe.top_k", f"{m.top_k} is more than experts = {m.experts}")
    if m:
        _check_groups(m)
    if d:
        _check_dense(d, spec)
    elif m is None:
        raise Bad("dense", "missing: a model without [moe] needs [dense]")
    if spec.layers * spec.experts > MOST_IN_ALL:
        raise Bad("moe.experts", f"{m.experts if m else 0} in each of {spec.layers} layers are more than "
                                 f"{MOST_IN_ALL:,} together")
    if any(not 0 <= t < spec.vocabulary for t in spec.eos):
        raise Bad("eos", f"{list(spec.eos)} is not inside the vocabulary of {spec.vocabulary}")
    return spec


def _check_attention(a: Attention, layers: int) -> None:
    if a.heads % a.kv_heads:
        raise Bad("attention.kv_heads", f"{a.kv_heads} does not divide heads = {a.heads}")
    for name, pairs in ("head_dim", a.head_dim), ("rotary_dim", a.rotary_dim), ("latent.rotary_dim", a.turning):
        if pairs % 2:
            raise Bad(f"attention.{name}", f"{pairs} is odd; RoPE needs pairs")
    if a.rotary_dim > a.head_dim:
        raise Bad("attention.rotary_dim", f"{a.rotary_dim} is more than head_dim = {a.head_dim}")
    if any(not 0 <= n < layers for n in a.window_layers):
        raise Bad("attention.window_layers", f"names a layer outside 0 to {layers - 1}")
    if a.window_layers and not a.window:
        raise Bad("attention.window_layers", "is given, but no window")
    if a.yarn and a.yarn.fast <= a.yarn.slow:
        raise Bad("attention.yarn.fast", f"{a.yarn.fast} should be more than slow = {a.yarn.slow}")
    if a.latent:
        plain = Attention(a.heads, a.heads, a.head_dim, a.rope_theta, yarn=a.yarn, score_factor=a.score_factor,
                          output_bias=a.output_bias, latent=a.latent)
        if differ := [name for name, value in vars(a).items() if value != getattr(plain, name)]:
            raise Bad(f"attention.{differ[0]}", f"{getattr(a, differ[0])} cannot be beside a latent, which has "
                                                f"{getattr(plain, differ[0])}")


def _check_dense(d: Dense, spec: ModelSpec) -> None:
    if isinstance(d.layers, tuple):
        count, outside = len(set(d.layers)), any(not 0 <= n < spec.layers for n in d.layers)
    else:
        count, outside = d.layers, d.layers > spec.layers
    if outside:
        raise Bad("dense.layers", f"names a layer outside 0 to {spec.layers - 1}")
    if spec.moe is None and count < spec.layers:
        raise Bad("dense.layers", f"names {count} of {spec.layers} layers, and there is no [moe] for the others")


def _check_groups(m: Moe) -> None:
    if m.experts % m.groups:
        raise Bad("moe.groups", f"{m.groups} does not divide experts = {m.experts}")
    if m.groups_kept > m.groups:
        raise Bad("moe.groups_kept", f"{m.groups_kept} is more than groups = {m.groups}")
    if m.top_k > m.groups_kept * (m.experts // m.groups):
        raise Bad("moe.top_k", f"{m.top_k} is more than the experts of {m.groups_kept} groups")
    if m.shared_gate and not m.shared_hidden:
        raise Bad("moe.shared_gate", "is true, but there is no shared expert (shared_hidden = 0)")


def load(path: Path) -> ModelSpec:
    """The spec in a TOML file. Raises `InputError`."""
    return from_named_table(tables.read(path, InputError, "spec"), f"spec {path}", InputError)


def check(spec: ModelSpec, where: str) -> None:
    """Raises `InputError`, naming `where` it came from, where no table would give `spec`: what does not fit together
    is found before a file is written that cannot be opened."""
    from_named_table(tables.plain(spec), where, InputError)


def from_named_table(table: dict, where: str, error: type[HpcmoeError]) -> ModelSpec:
    """`from_table`, with a misfit raised as `error` that names `where` it was found."""
    try:
        return from_table(table)
    except Bad as bad:
        raise error(f"{where}: {bad}") from None
