"""Figures along the time of a run: throughput, imbalance."""

from typing import Any

import numpy as np

from hpcmoe.report import bins, style, text
from hpcmoe.report.blocks import SHOWN, Block, Grid, Picture
from hpcmoe.report.measured import Measured


def throughput(run: Measured) -> Block:
    """Tokens/s over the time in steps."""
    title, steps = "Throughput", run.steps
    if not run.seconds:
        return Block(title, "left out: no step took any time.")
    at = bins.timeline(steps)
    new, computed = (bins.over(bins.along(n, steps, at), at) for n in (steps.chosen, steps.tokens))
    word, starts = "scored" if run.scored else "new", _starts(run)
    wide = np.linspace(0.0, run.seconds, min(len(steps.wall), SHOWN) + 1)
    coarse = [bins.over(bins.along(n, steps, wide), wide) for n in (steps.chosen, steps.tokens)]
    rows = tuple((f"{begin:,.2f} to {end:,.2f} s", f"{a:,.1f}", f"{b:,.1f}")
                 for begin, end, a, b in zip(wide, wide[1:], *coarse))
    ends = coarse[0][0], coarse[0][-1]
    says = (f"{run.rate:,.1f} {word} tokens/s on average over {text.plural(len(steps.wall), 'step')} and "
            f"{text.seconds(run.seconds)}, {run.rate / run.ranks:,.1f} a rank; {ends[0]:,.1f} in the first "
            f"{_part(len(rows))} of the time, {ends[1]:,.1f} in the last. Computed tokens, prompts included: "
            f"{int(steps.tokens.sum()) / run.seconds:,.1f} tokens/s.")
    if len(at) - 1 < len(steps.wall):
        says += f" The picture shows the averages of {len(at) - 1} equal spans of time."
    if len(starts):
        says += f" The job was started {len(starts) + 1} times; dotted lines are where it began again."

    def draw(figure: Any) -> None:
        both = figure.subplots(2, 1, sharex=True)
        for axes, values, color, name in zip(both, (new, computed), (style.BLUE, style.RED), (word, "computed")):
            axes.stairs(values, at, color=color, linewidth=1.2, baseline=None)
            axes.set(ylabel=f"{name} tokens/s", xlim=(0, run.seconds), ylim=(0, 1.05 * max(values.max(), 1e-9)))
            axes.yaxis.set_major_formatter("{x:,.10g}")
            for start in starts:
                axes.axvline(start, color=style.GREY, linestyle=":", linewidth=1)
        both[-1].set_xlabel("time in steps (s)")
    return Block(title, says, Grid(("time in steps", f">{word} tokens/s", ">computed tokens/s"), rows),
                 Picture("throughput", f"Line of tokens per second over {text.seconds(run.seconds)}: {run.rate:,.1f} "
                         f"{word} tokens/s on average, {ends[0]:,.1f} at first, {ends[1]:,.1f} at last.", draw, 4.0))


def _part(count: int) -> str:
    return f"{count}th" if count > 3 else {1: "whole", 2: "half", 3: "third"}[count]


def _starts(run: Measured) -> np.ndarray:
    """Seconds at which each start but the first began."""
    begins = {int(run.steps.attempt[rows[0]]): begin for begin, rows in bins.tracks(run.steps)}
    return np.array(list(begins.values())[1:])


def imbalance(run: Measured) -> Block:
    """How uneven the ranks' work was, step by step."""
    title, known = "Imbalance by step", np.flatnonzero(~np.isnan(run.uneven))
    if run.ranks == 1 or not len(known):
        return Block(title, "left out: " + ("one rank has nobody to wait for." if run.ranks == 1 else
                                            "no step spent time in experts."))
    uneven = run.uneven[known]
    median, high, worst = (float(np.percentile(uneven, p)) for p in (50, 95, 100))
    first, least, middle, largest = bins.extremes(uneven)
    rows = tuple((f"{known[a]} to {known[b - 1]}", f"{uneven[a:b].min():.2f}", f"{np.median(uneven[a:b]):.2f}",
                  f"{uneven[a:b].max():.2f}") for a, b in _spans(len(uneven)))
    says = (f"the slowest rank spent {median:.2f} times as long in its experts as the ranks on average (median of the "
            f"steps; 95 % stayed below {high:.2f}, the worst had {worst:.2f}); 1 is even. It is a ratio of seconds: a "
            "slower device counts as much as more rows.")
    if len(first) < len(known):
        says += f" The picture shows the least, median and largest of each {len(known) / len(first):.0f} steps or so."

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        if len(first) < len(known):
            axes.fill_between(known[first], least, largest, color=style.BLUE, alpha=0.25, step="mid", linewidth=0,
                              label="least to largest")
        axes.step(known[first], middle, color=style.BLUE, where="mid", label="median" if len(first) < len(known) else
                  "slowest rank / mean")
        axes.axhline(1, color=style.GREY, linestyle="--", linewidth=1, label="even")
        axes.set(xlabel="step", ylabel="slowest rank / mean, in experts")
        style.whole(axes.xaxis)
        style.above(axes, 3)
    return Block(title, says, Grid(("steps", ">least", ">median", ">largest"), rows),
                 Picture("imbalance", f"Line over the steps of the slowest rank's time over the mean: median "
                         f"{median:.2f}, 95 % below {high:.2f}, at worst {worst:.2f}.", draw))


def _spans(count: int) -> list[tuple[int, int]]:
    first = bins.groups(count, SHOWN).tolist()
    return list(zip(first, [*first[1:], count]))
