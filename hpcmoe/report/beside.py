"""A run's steps, predicted beside measured."""

from typing import Any

import numpy as np

from hpcmoe.errors import HpcmoeError
from hpcmoe.predict.machine import Hardware
from hpcmoe.report import style, text
from hpcmoe.report.blocks import Block, Grid, Picture
from hpcmoe.report.measured import Measured
from hpcmoe.report.rerun import Kind, Rerun, rerun
from hpcmoe.traffic import CLASSES
from hpcmoe.types import STAGES

TITLES = ("Predicted and measured", "Predicted and measured, by the size of a step")
COLUMNS = (">measured", ">predicted", ">error")


def beside(run: Measured, hw: Hardware | None) -> tuple[Block, ...]:
    """What the run took, and what it is predicted to take on `hw`: in all, and by the size of a step."""
    if hw is None:
        return (Block(TITLES[0], "left out: nothing is predicted without --hardware, which names a machine."),)
    if not run.seconds:
        return (Block(TITLES[0], "left out: no step took any time."),)
    try:
        again = rerun(run, hw)
    except HpcmoeError as error:
        return (Block(TITLES[0], f"left out: {error}."),)
    return _in_all(run, again, hw), _by_size(run, again)


def _in_all(run: Measured, again: Rerun, hw: Hardware) -> Block:
    one, two = run.steps, again.steps
    rates = [run.new / steps.seconds if steps.seconds else 0.0 for steps in (one, two)]
    rows = [_row("time in steps", one.seconds, two.seconds, text.seconds),
            _row("scored tokens/s" if run.scored else "new tokens/s", rates[0], rates[1], "{:,.1f}".format),
            _row("exchange exposed", float(one.moved.exposed), float(two.moved.exposed), text.seconds)]
    rows += [_row(name, a, b, text.seconds) for name, a, b in
             zip(STAGES, one.average.tolist(), two.average.tolist()) if a or b]
    rows += [_row(f"bytes, {name}", a, b, text.size) for name, a, b in
             zip(CLASSES, one.moved.bytes.tolist(), two.moved.bytes.tolist()) if a or b]
    says = (f"all steps took {text.seconds(one.seconds)}, and are predicted to take {text.seconds(two.seconds)} on "
            f"{hw.name} ({_error(one.seconds, two.seconds)}). {_how(run, again)} Stages are those of a rank, "
            "on average.")

    def draw(figure: Any) -> None:
        style.stages(figure, one.average, two.average, ("measured", "predicted"), "seconds, summed over the steps")
    alt = ", ".join(f"{name} {text.seconds(a)} and {text.seconds(b)}"
                    for name, a, b in zip(STAGES, one.average.tolist(), two.average.tolist()))
    return Block(TITLES[0], says, Grid(("", *COLUMNS), tuple(rows)),
                 Picture("predicted", f"Pairs of bars, seconds by stage, measured and predicted: {alt}.", draw))


def _how(run: Measured, again: Rerun) -> str:
    """What was simulated."""
    job = again.layout.job
    turns = (f"{again.layout.parts} micro-batches, {job.schedule.mode}" if again.layout.parts > 1 else "serial")
    words = (f"Simulated with the job's {text.plural(run.ranks, 'rank')}, {job.parallel.ranks_per_node} on a node, the "
             f"experts as busy as they were, {turns}, {'two hops' if job.exchange.mode == 'twohop' else 'one hop'}.")
    if again.steps.attempt.any():
        words += f" All {int(again.steps.attempt.max()) + 1} starts are taken to have had as many ranks."
    return words


def _by_size(run: Measured, again: Rerun) -> Block:
    measured, told = ([float(steps.wall[kind.rows].mean()) for kind in again.kinds]
                      for steps in (run.steps, again.steps))
    off = np.abs([b / a - 1 for a, b in zip(measured, told) if a])
    rows = tuple((_called(kind, run.scored), f"{kind.tokens:,.1f}", f"{len(kind.rows):,}",
                  *_row("", a, b, text.seconds)[1:]) for kind, a, b in zip(again.kinds, measured, told))
    says = (f"of {text.plural(len(rows), 'size')} of steps half are off by {100 * np.median(off):.0f} % or less, the "
            f"worst by {100 * off.max():.0f} %. Seconds are those of the slowest rank, mean over the steps; measured "
            "ones have in them what else the machine did meanwhile.")

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        for alone, color, marks in ((True, style.BLUE, "ox"), (False, style.RED, "sD")):
            mine = [n for n, kind in enumerate(again.kinds) if kind.alone == alone]
            for values, mark, word in zip((measured, told), marks, ("measured", "predicted")):
                axes.plot([again.kinds[n].tokens for n in mine], [1e3 * values[n] for n in mine], mark, color=color,
                          label=f"{word}, {_sort(alone, run.scored)}" if mine else None,
                          markerfacecolor=color if word == "measured" else "none")
        axes.set(xlabel="tokens of a step", ylabel="time of a step (ms)", xscale="log", yscale="log")
        style.above(axes)
    span = f"{text.seconds(min(measured))} to {text.seconds(max(measured))}"
    return Block(TITLES[1], says, Grid(("steps", ">tokens", ">steps", *COLUMNS), rows),
                 Picture("predicted-steps", f"Points, the time of a step by its tokens: measured {span}, predicted "
                         f"{text.seconds(min(told))} to {text.seconds(max(told))}.", draw, 3.8))


def _sort(alone: bool, scored: bool) -> str:
    return "a token each" if alone else "prompts" if scored else "with prompts"


def _called(kind: Kind, scored: bool) -> str:
    return {"a token each": "a token for each sequence"}.get(_sort(kind.alone, scored), _sort(kind.alone, scored))


def _row(name: str, measured: float, told: float, shown: Any) -> tuple[str, str, str, str]:
    return name, shown(measured), shown(told), _error(measured, told)


def _error(measured: float, told: float) -> str:
    """Of the prediction."""
    return f"{round(100 * (told / measured - 1)):+,d} %" if measured else ""
