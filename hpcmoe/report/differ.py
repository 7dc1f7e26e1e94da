"""Two runs beside each other: what changed, and what it did."""

from collections.abc import Callable
from typing import Any

import numpy as np

from hpcmoe.report import style, text
from hpcmoe.report.blocks import Block, Grid, Picture, Section
from hpcmoe.report.latency import firsts, latencies
from hpcmoe.report.measured import Measured, flat
from hpcmoe.traffic import CLASSES
from hpcmoe.types import STAGES

SAME = ("output",)
"""Keys of a job whose change says nothing."""
ABSENT = "(not there)"
NAMED = 8
"""Hosts, or parts of versions, that are named."""


def compare(one: Measured, two: Measured) -> Section:
    """Both, in a section."""
    return Section("Run 2 against run 1", (_changed(one, two), _speed(one, two), _stages(one, two)))


def _changed(one: Measured, two: Measured) -> Block:
    rows = [(key, _shown(a), _shown(b)) for key, a, b in _keys(one, two)]
    rows += [(what, a, b) for what, a, b in (
        ("ranks", str(one.ranks), str(two.ranks)), ("experts per rank and layer", str(one.slots), str(two.slots)),
        ("hosts", *_only(sorted(set(one.hosts)), sorted(set(two.hosts)))),
        ("answers", f"{len(one.lengths):,}", f"{len(two.lengths):,}"),
        ("versions", *_only(one.versions.split(", "), two.versions.split(", "))),
        ("uuid of the model", _uuid(one, "model"), _uuid(two, "model")),
        ("uuid of the prompts", _uuid(one, "prompts"), _uuid(two, "prompts"))) if a != b]
    if not rows:
        return Block("What changed", "nothing that the files tell: job, model, prompts, versions, hosts and ranks are "
                                     "the same.")
    some = ", ".join(row[0] for row in rows[:NAMED]) + (f" and {len(rows) - NAMED} more" if len(rows) > NAMED else "")
    return Block("What changed", f"{some}.", Grid(("what", "run 1", "run 2"), tuple(rows)))


def _keys(one: Measured, two: Measured) -> list[tuple[str, object, object]]:
    a, b = flat(one.job), flat(two.job)
    return [(f"key {key}", a.get(key, ABSENT), b.get(key, ABSENT)) for key in dict.fromkeys([*a, *b])
            if key not in SAME and a.get(key, ABSENT) != b.get(key, ABSENT)]


def _shown(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else '""' if value == "" else str(value)


def _only(one: list[str], two: list[str]) -> tuple[str, str]:
    """Of both lists what the other does not have, `NAMED` at most; "" twice where they are the same."""
    if one == two:
        return "", ""
    apart = [[word for word in mine if word not in set(other)] for mine, other in ((one, two), (two, one))]
    a, b = (", ".join(words[:NAMED]) + (f" and {len(words) - NAMED} more" if len(words) > NAMED else "") or ABSENT
            for words in apart)
    return a, b


def _uuid(run: Measured, word: str) -> str:
    """Of the model or the prompts, as the identity of a job has it."""
    mark = f"# {word} "
    return next((line.removeprefix(mark) for line in run.identity.splitlines() if line.startswith(mark)), "")


def _speed(one: Measured, two: Measured) -> Block:
    rows: list[tuple[str, ...]] = []
    for name, of, shown in MEASURES:
        a, b = of(one), of(two)
        if np.isfinite(a) and np.isfinite(b) and (a or b):
            rows.append((name, shown(a), shown(b), f"x {b / a:.2f}" if a else ""))
    says = f"run 2 makes {two.rate / one.rate:.2f} times as many tokens/s as run 1 ({two.rate:,.1f} against " \
           f"{one.rate:,.1f})." if one.rate else "run 1 made no tokens."
    a, b = _exposed(one), _exposed(two)
    if a or b:
        says += f" For a computed token a rank waits {_us(b)} for rows, where it was {_us(a)}."
    a, b = _median(one), _median(two)
    if np.isfinite(a) and np.isfinite(b):
        says += f" The slowest rank spends {b:.2f} times as long in experts as the mean, where it was {a:.2f}."
    return Block("What it did", says, Grid(("", ">run 1", ">run 2", ">run 2 / run 1"), tuple(rows)))


def _median(run: Measured) -> float:
    """Of the steps' imbalance; NaN where there is none."""
    known = run.uneven[~np.isnan(run.uneven)]
    return float(np.median(known)) if len(known) and run.ranks > 1 else float("nan")


def _each(run: Measured, amount: float) -> float:
    """Of a computed token."""
    return amount / max(int(run.steps.tokens.sum()), 1)


def _exposed(run: Measured) -> float:
    """Seconds of a rank for a computed token."""
    return _each(run, float(run.steps.moved.exposed))


def _latency(n: int) -> Callable[[Measured], float]:
    return lambda run: float("nan") if run.scored else latencies(run)[n]


def _us(span: float) -> str:
    return f"{span * 1e6:,.2f} µs"


MEASURES: tuple[tuple[str, Callable[[Measured], float], Callable[[float], str]], ...] = (
    ("new or scored tokens/s", lambda run: run.rate, "{:,.1f}".format),
    ("the same of a rank", lambda run: run.rate / run.ranks, "{:,.2f}".format),
    ("token latency, 50 %", _latency(0), text.seconds), ("token latency, 99 %", _latency(3), text.seconds),
    ("slowest token", _latency(4), text.seconds),
    *((f"first token of a prompt, {p} %", lambda run, n=n: firsts(run.first)[n], text.seconds)
      for n, p in ((0, 50), (3, 99))),
    ("computed tokens a step", lambda run: int(run.steps.tokens.sum()) / max(len(run.steps.tokens), 1),
     "{:,.1f}".format),
    ("exchange a computed token", lambda run: _each(run, float(run.steps.moved.seconds)), _us),
    ("of it exposed", _exposed, _us),
    ("share of it that is hidden", lambda run: float(run.steps.moved.hidden), "{:.0%}".format),
    *((f"bytes a token, {name}", lambda run, n=n: _each(run, float(run.steps.traffic.bytes[:, n].sum())), text.size)
      for n, name in enumerate(CLASSES)),
    ("slowest rank / mean, in experts", _median, "{:.2f}".format))
"""What is compared: its name, its value, NaN where there is none, and how that is written."""


def _stages(one: Measured, two: Measured) -> Block:
    title = "Stages beside each other"
    a, b = (1e6 * run.steps.average / max(int(run.steps.tokens.sum()), 1) for run in (one, two))
    if not (a.any() and b.any()):
        return Block(title, "left out: one of them has no times of stages.")
    most = int(np.argmax(np.abs(b - a)))
    says = f"time of a rank for each computed token; {STAGES[most]} changed most, from {a[most]:,.2f} to " \
           f"{b[most]:,.2f} µs. All stages together: {a.sum():,.2f} and {b.sum():,.2f} µs."
    rows = tuple((name, f"{x:,.2f} µs", f"{y:,.2f} µs", f"{y - x:+,.2f} µs", f"x {y / x:.2f}" if x else "")
                 for name, x, y in zip(STAGES, a.tolist(), b.tolist()))

    def draw(figure: Any) -> None:
        style.stages(figure, a, b, ("run 1", "run 2"), "µs of a rank for each computed token, mean")
    alt = ", ".join(f"{name} {x:,.2f} and {y:,.2f}" for name, x, y in zip(STAGES, a.tolist(), b.tolist()))
    return Block(title, says, Grid(("stage", ">run 1", ">run 2", ">difference", ">run 2 / run 1"), rows),
                 Picture("stages-compared", f"Pairs of bars, µs a token by stage, runs 1 and 2: {alt}.", draw))
