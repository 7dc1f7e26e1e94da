"""Two runs beside each other: what changed, and what it did."""

from typing import Any

import numpy as np

from hpcmoe.report import style, text
from hpcmoe.report.blocks import Block, Grid, Picture, Section
from hpcmoe.report.measured import Measured, flat
from hpcmoe.report.over_time import latencies
from hpcmoe.report.overview import hosts
from hpcmoe.traffic import CLASSES
from hpcmoe.types import STAGES

SAME = ("output",)
"""Keys of a job whose change says nothing."""
ABSENT = "(not there)"


def compare(one: Measured, two: Measured) -> Section:
    """Both, in a section."""
    return Section("Run 2 against run 1", (_changed(one, two), _speed(one, two), _stages(one, two)))


def _changed(one: Measured, two: Measured) -> Block:
    rows = [(key, _shown(a), _shown(b)) for key, a, b in _keys(one, two)]
    for what, a, b in (("ranks", str(one.ranks), str(two.ranks)),
                       ("experts per rank and layer", str(one.slots), str(two.slots)),
                       ("hosts", hosts(one.hosts), hosts(two.hosts)),
                       ("answers", f"{len(one.lengths):,}", f"{len(two.lengths):,}"), *_versions(one, two),
                       *((f"uuid of the {word}", _uuid(one, word), _uuid(two, word)) for word in ("model", "prompts"))):
        if a != b or (what == "hosts" and sorted(set(one.hosts)) != sorted(set(two.hosts))):
            rows.append((what, a, b))
    if not rows:
        return Block("What changed", "nothing that the files tell: same job, model, prompts, versions, hosts and ranks.")
    some = ", ".join(row[0] for row in rows[:8]) + (f" and {len(rows) - 8} more" if len(rows) > 8 else "")
    return Block("What changed", f"{some}.", Grid(("what", "run 1", "run 2"), tuple(rows)))


def _keys(one: Measured, two: Measured) -> list[tuple[str, object, object]]:
    a, b = flat(one.job), flat(two.job)
    return [(f"job: {key}", a.get(key, ABSENT), b.get(key, ABSENT)) for key in dict.fromkeys([*a, *b])
            if key not in SAME and a.get(key, ABSENT) != b.get(key, ABSENT)]


def _shown(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else '""' if value == "" else str(value)


def _versions(one: Measured, two: Measured) -> list[tuple[str, str, str]]:
    """The parts of the versions that the other does not have."""
    a, b = (run.versions.split(", ") for run in (one, two))
    return [("versions", ", ".join(v for v in a if v not in b) or ABSENT, ", ".join(v for v in b if v not in a) or ABSENT)
            ] if a != b else []


def _uuid(run: Measured, word: str) -> str:
    """Of the model or the prompts, as the identity of a job has it."""
    mark = f"# {word} "
    return next((line.removeprefix(mark) for line in run.identity.splitlines() if line.startswith(mark)), "")


def _speed(one: Measured, two: Measured) -> Block:
    rows: list[tuple[str, str, str, str]] = []

    def add(name: str, a: float, b: float, shown: Any) -> None:
        if np.isfinite(a) and np.isfinite(b) and (a or b):
            rows.append((name, shown(a), shown(b), f"x {b / a:.2f}" if a else "new"))
    both = one, two
    add("new or scored tokens/s", one.rate, two.rate, lambda v: f"{v:,.1f}")
    add("the same of a rank", *(run.rate / run.ranks for run in both), lambda v: f"{v:,.2f}")
    if not (one.scored or two.scored):
        for name, n in (("token latency, 50 %", 0), ("token latency, 99 %", 3), ("slowest token", 4)):
            add(name, *(latencies(run)[n] for run in both), text.seconds)
    add("computed tokens a step", *(float(run.steps.tokens.mean()) if len(run.steps.tokens) else 0.0 for run in both),
        lambda v: f"{v:,.1f}")
    sums = [run.steps.traffic.total() for run in both]
    add("exchange a computed token", *(_each(run, float(s.seconds)) for run, s in zip(both, sums)), _us)
    add("of it exposed", *(_each(run, float(s.exposed)) for run, s in zip(both, sums)), _us)
    hidden = [float(s.hidden) if s.seconds else 0.0 for s in sums]
    add("share that was hidden", *hidden, lambda v: f"{100 * v:.0f} %")
    for n, name in enumerate(CLASSES):
        add(f"bytes a token, {name}", *(_each(run, float(s.bytes[n])) for run, s in zip(both, sums)), text.size)
    add("slowest rank / mean, in experts", *(_median(run) for run in both), lambda v: f"{v:.2f}")
    says = f"run 2 makes {two.rate / one.rate:.2f} times as many tokens/s as run 1 ({two.rate:,.1f} against " \
           f"{one.rate:,.1f})." if one.rate else "run 1 made no tokens."
    return Block("What it did", says, Grid(("", ">run 1", ">run 2", ">run 2 / run 1"), tuple(rows)))


def _median(run: Measured) -> float:
    known = run.uneven[~np.isnan(run.uneven)]
    return float(np.median(known)) if len(known) and run.ranks > 1 else float("nan")


def _each(run: Measured, amount: float) -> float:
    """Of a computed token; per rank where it is of a rank."""
    return amount / max(int(run.steps.tokens.sum()), 1)


def _us(span: float) -> str:
    return f"{span * 1e6:,.2f} µs"


def _stages(one: Measured, two: Measured) -> Block:
    title = "Stages beside each other"
    a, b = (1e6 * run.steps.mean.sum(axis=0) / max(int(run.steps.tokens.sum()), 1) for run in (one, two))
    if not (a.any() and b.any()):
        return Block(title, "left out: one of them has no times of stages.")
    most = int(np.argmax(np.abs(b - a)))
    says = f"time of a rank for each computed token; {STAGES[most]} changed most, from {a[most]:,.2f} to " \
           f"{b[most]:,.2f} µs. All stages together: {a.sum():,.2f} and {b.sum():,.2f} µs."
    rows = tuple((name, f"{x:,.2f} µs", f"{y:,.2f} µs", f"{y - x:+,.2f} µs", f"x {y / x:.2f}" if x else "")
                 for name, x, y in zip(STAGES, a.tolist(), b.tolist()))

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        place = np.arange(len(STAGES))
        axes.barh(place - 0.2, a, 0.4, color=style.BLUE, label="run 1")
        axes.barh(place + 0.2, b, 0.4, color=style.ORANGE, hatch=style.HATCH, edgecolor="white", linewidth=0,
                  label="run 2")
        axes.set_yticks(place, STAGES)
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("µs of a rank for each computed token, mean")
        style.above(axes)
    alt = ", ".join(f"{name} {x:,.2f} and {y:,.2f}" for name, x, y in zip(STAGES, a.tolist(), b.tolist()))
    return Block(title, says, Grid(("stage", ">run 1", ">run 2", ">difference", ">run 2 / run 1"), rows),
                 Picture("stages-compared", f"Pairs of bars, µs a token by stage, runs 1 and 2: {alt}.", draw))
