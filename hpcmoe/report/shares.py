"""Figures of where the seconds of a run went: stages, and the exchange, hidden or not."""

from typing import Any

import numpy as np

from hpcmoe.report import bins, style, text
from hpcmoe.report.blocks import SHOWN, Block, Grid, Picture
from hpcmoe.report.measured import Measured
from hpcmoe.traffic import CLASSES
from hpcmoe.types import STAGES


def stages(run: Measured) -> Block:
    """Seconds by stage."""
    title, total = "Stages of a step", float(run.steps.average.sum())
    if not total:
        return Block(title, "left out: no stage took any time.")
    mean, slowest = run.steps.average, run.steps.slowest
    rows = [(name, text.seconds(a), text.seconds(b), f"{100 * a / total:.0f} %")
            for name, a, b in zip(STAGES, mean.tolist(), slowest.tolist())]
    top = np.argsort(-mean)[:2]
    largest = " and ".join(f"{STAGES[n]} ({100 * mean[n] / total:.0f} %)" for n in top)
    says = (f"most of the time of a rank goes into {largest}. Of {text.seconds(run.seconds)} in steps "
            f"{text.seconds(total)} are in stages, mean over the ranks.")
    if total <= run.seconds:
        rest = run.seconds - total
        rows.append(("outside of stages", text.seconds(rest), "", ""))
        says += f" The other {text.seconds(rest)} are waits for the slowest rank, and the program's own work."
    else:
        says += " Stages that ran at the same time count each."

    def draw(figure: Any) -> None:
        style.stages(figure, mean, slowest, ("mean over ranks", "slowest rank"), "seconds, summed over the steps")
    alt = ", ".join(f"{STAGES[n]} {text.seconds(float(mean[n]))}" for n in np.argsort(-mean))
    return Block(title, says, Grid(("stage", ">mean over ranks", ">slowest rank", ">share"), tuple(rows)),
                 Picture("stages", f"Bars of seconds by stage, mean over ranks: {alt}.", draw))


def exchange(run: Measured) -> Block:
    """Exposed and hidden seconds of the exchange, over time and by layer."""
    title, sums = "Exchange, exposed and hidden", run.steps.moved
    if not sums.seconds:
        return Block(title, "left out: " + ("one rank exchanges nothing." if run.ranks == 1 else
                                            "no seconds of exchanges were recorded."))
    share, exposed = 100 * float(sums.hidden), float(sums.exposed)
    worst = int(np.argmax(run.layers.exposed)) if run.layers.exposed.any() else -1
    says = (f"rows were under way for {text.seconds(float(sums.seconds))} (mean over ranks); arithmetic hid "
            f"{share:.0f} % of that, and for {text.seconds(exposed)} a rank waited, "
            f"{100 * exposed / max(run.seconds, 1e-9):.0f} % of the time in steps.")
    if worst >= 0:
        says += f" Most of the wait is in layer {worst}, {text.seconds(float(run.layers.exposed[worst]))}."
    at = bins.timeline(run.steps)
    open_, total = (100 * bins.over(bins.along(run.steps.part * seconds, run.steps, at), at)
                    for seconds in (run.steps.traffic.exposed, run.steps.traffic.seconds))
    layers = run.layers

    def draw(figure: Any) -> None:
        above, below = figure.subplots(2, 1)
        above.stairs(total, at, fill=True, color=style.ORANGE, label="under way")
        above.stairs(open_, at, fill=True, color=style.BLUE, label="of it exposed")
        above.set(xlabel="time in steps (s)", ylabel="of the time (%)", xlim=(0, at[-1]), ylim=(0, None))
        style.above(above)
        number = np.arange(len(layers.seconds))
        below.bar(number, layers.exposed, 0.8, color=style.BLUE, label="exposed")
        below.bar(number, np.maximum(layers.seconds - layers.exposed, 0), 0.8, bottom=layers.exposed, linewidth=0,
                  color=style.ORANGE, hatch=style.HATCH, edgecolor="white", label="hidden")
        below.set(xlabel="layer", ylabel="seconds")
        below.grid(axis="x", visible=False)
        style.whole(below.xaxis)
        style.above(below)
    order = np.argsort(-layers.exposed, kind="stable")[:SHOWN]
    rows = [_row("all steps", float(sums.seconds), exposed)]
    rows += [_row(f"layer {n}", float(layers.seconds[n]), float(layers.exposed[n]))
             for n in np.sort(order).tolist() if layers.seconds[n]]
    return Block(title, says, Grid(("", ">under way", ">exposed", ">hidden"), tuple(rows)),
                 Picture("exchange", f"Areas over time and bars by layer of the exchange: {share:.0f} % hidden, "
                         f"{text.seconds(exposed)} exposed"
                         + (f", most in layer {worst}." if worst >= 0 else "."), draw, 4.6))


def _row(name: str, under_way: float, exposed: float) -> tuple[str, str, str, str]:
    return (name, text.seconds(under_way), text.seconds(exposed),
            f"{100 * (1 - exposed / under_way):.0f} %" if under_way else "")


def links(run: Measured) -> Block:
    """Bytes by where they went."""
    title, moved = "Traffic by class of link", run.steps.moved.bytes
    if not moved.sum():
        return Block(title, "left out: no rows were sent.")
    whole, tokens = int(moved.sum()), max(int(run.steps.tokens.sum()), 1)
    rows = tuple((name, text.size(count), f"{100 * count / whole:.1f} %", text.size(count / tokens))
                 for name, count in zip(CLASSES, moved.tolist()))
    far = 100 * int(moved[-1]) / whole
    says = (f"{text.size(whole)} of rows, there and back, {text.size(whole / tokens)} for each computed token; "
            f"{far:.0f} % went to other nodes. Results know bytes by these classes, not by single links.")

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        axes.barh(np.arange(len(CLASSES)), moved / tokens / 1000, 0.6, color=style.BLUE)
        axes.set_yticks(np.arange(len(CLASSES)), CLASSES)
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("kB of rows for each computed token")
    alt = ", ".join(f"{name} {text.size(count)}" for name, count in zip(CLASSES, moved.tolist()))
    return Block(title, says, Grid(("where to", ">bytes", ">share", ">a token"), rows),
                 Picture("links", f"Bars of bytes of rows by where they went: {alt}.", draw, 2.0))
