"""The table that a report begins with: what each run was, and what it came to."""

from collections.abc import Sequence

import numpy as np

from hpcmoe.report import text
from hpcmoe.report.blocks import Block, Grid
from hpcmoe.report.latency import firsts, latencies
from hpcmoe.report.measured import Measured

NAMED = 4
"""Hosts that are named."""
BESIDE = 3
"""Runs that stand beside each other; more stand below each other, with less of each."""
SHORT = ("file", ">ranks", ">answers", ">tokens", ">time in steps", ">tokens/s", ">of a rank", ">exchange exposed",
         ">hidden")


def facts(run: Measured) -> dict[str, str]:
    """What a run came to, by what it is."""
    sums, word = run.steps.moved, "scored" if run.scored else "new"
    spans, waits = latencies(run), firsts(run.first)
    uneven = run.uneven[~np.isnan(run.uneven)]
    return {
        "file": str(run.path), "made": run.created, "ranks": ranks(run), "hosts": hosts(run.hosts),
        "experts per rank and layer": str(run.slots),
        "answers": f"{len(run.lengths):,} ({', '.join(f'{n:,} {why}' for why, n in sorted(run.stops.items()))})",
        f"{word} tokens": f"{run.new:,}", "computed tokens": f"{int(run.steps.tokens.sum()):,}",
        "time in steps": f"{text.seconds(run.seconds)}, {text.plural(len(run.steps.wall), 'step')}",
        f"{word} tokens/s": f"{run.rate:,.1f}", f"{word} tokens/s of a rank": f"{run.rate / run.ranks:,.2f}",
        "token latency, 50 and 99 %": "" if run.scored or np.isnan(spans[0]) else
        f"{text.seconds(spans[0])}, {text.seconds(spans[3])}",
        "first token of a prompt, 50 and 99 %": "" if np.isnan(waits[0]) else
        f"{text.seconds(waits[0])}, {text.seconds(waits[3])}",
        "exchange exposed": f"{text.seconds(float(sums.exposed))}, {100 * float(sums.hidden):.0f} % hidden"
        if sums.seconds else "", "slowest rank / mean, in experts":
        f"{np.median(uneven):.2f} (median step)" if len(uneven) and run.ranks > 1 else "",
        "versions": run.versions}


def ranks(run: Measured) -> str:
    """How many, and in how many groups."""
    return f"{run.ranks} in {run.groups} independent groups" if run.groups > 1 else str(run.ranks)


def hosts(names: Sequence[str]) -> str:
    """How many, and the first of them."""
    found = sorted(set(names))
    more = ", …" if len(found) > NAMED else ""
    return f"{len(found)} ({', '.join(found[:NAMED])}{more})"


def summary(runs: Sequence[Measured]) -> Block:
    """Facts of all runs."""
    each = [facts(run) for run in runs]
    wanted = [name for name in dict.fromkeys(name for one in each for name in one)
              if any(one.get(name) for one in each)]
    if len(runs) > BESIDE:
        return Block("Summary", "", Grid(("", *SHORT), tuple((title, *_short(run)) for title, run in
                                                             zip(titles(runs), runs))))
    rows = tuple((name, *(one.get(name, "") for one in each)) for name in wanted)
    return Block("Summary", "", Grid(("", *titles(runs)), rows))


def _short(run: Measured) -> tuple[str, ...]:
    """A row of `SHORT`."""
    sums = run.steps.moved
    return (str(run.path), str(run.ranks), f"{len(run.lengths):,}", f"{run.new:,}", text.seconds(run.seconds),
            f"{run.rate:,.1f}", f"{run.rate / run.ranks:,.2f}", text.seconds(float(sums.exposed)),
            f"{100 * float(sums.hidden):.0f} %" if sums.seconds else "")


def titles(runs: Sequence[Measured]) -> list[str]:
    """What runs are called in tables and pictures."""
    return ["this run"] if len(runs) == 1 else [f"run {n}" for n in range(1, len(runs) + 1)]
