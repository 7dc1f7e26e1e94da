"""Figures of how long things took: a token, and a prompt's first one."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from hpcmoe.report import bins, style, text
from hpcmoe.report.blocks import Block, Grid, Picture
from hpcmoe.report.measured import Measured

PERCENTILES = (50, 90, 95, 99, 100)


def latencies(run: Measured) -> list[float]:
    """Seconds of the steps in which tokens were made, at `PERCENTILES` of the tokens; NaN where there were none."""
    return [bins.percentile(run.steps.wall, run.steps.chosen, p / 100) for p in PERCENTILES]


def firsts(seconds: np.ndarray) -> list[float]:
    """At `PERCENTILES` of the prompts, those of `seconds` `[P]` that are known; NaN where none are."""
    known = seconds[~np.isnan(seconds)]
    return [bins.percentile(known, np.ones(len(known)), p / 100) for p in PERCENTILES]


def latency(run: Measured) -> Block:
    """How long a token takes."""
    title, steps = "Latency of a token", run.steps
    made = steps.chosen > 0
    if run.scored or not made.any():
        return Block(title, "left out: " + ("prompts were scored, so no token waited for the one before it."
                                            if run.scored else "no tokens were made."))
    found = latencies(run)
    says = (f"half of the new tokens took {text.seconds(found[0])} or less, 99 % {text.seconds(found[3])}, the slowest "
            f"{text.seconds(found[4])}. A sequence gets one token a step, so a token takes as long as its step, on the "
            "slowest rank.")
    return _rising(title, "latency", says, ("token", "tokens"), steps.wall[made], steps.chosen[made], found)


def first_token(run: Measured) -> Block:
    """How long a prompt that was begun waited for its first new token."""
    title, known = "First token of a prompt", run.first[~np.isnan(run.first)]
    if not len(known):
        return Block(title, "left out: " + ("prompts were scored, so there were no new tokens." if run.scored else
                                            "the file does not tell; an older hpcmoe made it."))
    found = firsts(run.first)
    says = (f"half of the prompts had their first token within {text.seconds(found[0])}, 99 % within "
            f"{text.seconds(found[3])}, the last within {text.seconds(found[4])}. Counted from when a rank had a slot "
            "for it: the wait for that says how many prompts there were.")
    if len(known) < len(run.first):
        says += f" Of {len(run.first) - len(known):,} of {len(run.first):,} prompts it is not known."
    return _rising(title, "first-token", says, ("first token", "prompts"), known, np.ones(len(known)), found)


def _rising(title: str, name: str, says: str, what: tuple[str, str], seconds: np.ndarray, weights: np.ndarray,
            found: Sequence[float]) -> Block:
    """What share of the weights `[n]` took no longer than seconds `[n]`; `what` takes them, and has the weights."""
    one, many = what
    order = np.argsort(seconds)
    spans, shares = seconds[order] * 1e3, 100 * np.cumsum(weights[order]) / weights.sum()
    some = np.unique(np.concatenate([bins.groups(len(spans), 4 * bins.MOST), [len(spans) - 1]]))

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        axes.step(np.concatenate([[spans[0]], spans[some]]), np.concatenate([[0.0], shares[some]]), where="post",
                  color=style.BLUE)
        for p, span, marker in zip(PERCENTILES, found, "osD^v"):
            label = f"{p} %: {text.seconds(span)}" if p < 100 else f"slowest: {text.seconds(span)}"
            axes.plot(span * 1e3, p, marker, color=style.RED, label=label, clip_on=False)
        axes.set(xlabel=f"time of a {one} (ms)", ylabel=f"{many} that took no longer (%)", ylim=(0, 100))
        axes.legend(loc="lower right")
        if spans[-1] > 20 * spans[0] > 0:
            axes.set_xscale("log")
    rows = tuple((f"{p} %" if p < 100 else "all", text.seconds(span)) for p, span in zip(PERCENTILES, found))
    return Block(title, says, Grid((f"share of the {many}", ">took at most"), rows),
                 Picture(name, f"Rising line, the share of {many} by the time that they took: half within "
                         f"{text.seconds(found[0])}, 99 % within {text.seconds(found[3])}, all within "
                         f"{text.seconds(found[4])}.", draw))
