"""What a plan expected of a run, beside what was measured."""

from pathlib import Path
from typing import Any

import numpy as np

from hpcmoe.errors import HpcmoeError
from hpcmoe.files import plan
from hpcmoe.files.plan import Plan
from hpcmoe.files.routing import folded
from hpcmoe.report import style, text
from hpcmoe.report.blocks import SHOWN, Block, Grid, Picture
from hpcmoe.report.measured import Measured, at
from hpcmoe.traffic import CLASSES

TITLE = "Expected by the plan, and measured"


def foretold(run: Measured) -> Block:
    """Rows of the ranks by layer, and bytes of a token, as the job's plan expected them, and as they came."""
    path, routing = at(run, "parallel.plan", ""), run.routing and folded(run.routing, run.groups)
    if not isinstance(path, str) or not path:
        return Block(TITLE, "left out: the job had no plan.")
    try:
        said = plan.read(Path(path))
    except HpcmoeError as error:
        return Block(TITLE, f"left out: {error}.")
    if routing is None or said.predicted.rows.shape != routing.computed.shape or not said.predicted.rows.any():
        return Block(TITLE, f"left out: {path} is of another model or other ranks by now, or the file does not tell "
                            "where its tokens went.")
    return _compared(run, said, routing.computed)


def _compared(run: Measured, said: Plan, computed: np.ndarray) -> Block:
    layers = np.intersect1d(said.predicted.layers, np.flatnonzero(computed.any(axis=1)))
    expected, found = (rows[layers].max(axis=1) / rows[layers].mean(axis=1) for rows in (said.predicted.rows, computed))
    if not len(layers):
        return Block(TITLE, "left out: no rows went to experts.")
    planned = said.predicted.bytes.sum(axis=0) / max(said.weights.tokens * said.ranks, 1e-9)
    moved = run.steps.moved.bytes / max(int(run.steps.tokens.sum()), 1)
    off = np.abs(found / expected - 1)
    says = (f"the fullest rank of a layer had {found.mean():.2f} times the rows of the mean, and the plan expected "
            f"{expected.mean():.2f}; a layer is off by {100 * np.median(off):.0f} % (median), {100 * off.max():.0f} % "
            f"at most. A token's rows took {text.size(moved[-1])} to other nodes; {text.size(planned[-1])} were "
            "expected.")
    worst = np.sort(np.argsort(-off, kind="stable")[:SHOWN])
    rows = [(f"layer {layers[n]}: fullest rank / mean", f"{expected[n]:.3f}", f"{found[n]:.3f}",
             f"{found[n] / expected[n]:.2f}") for n in worst.tolist()]
    rows += [(f"bytes a token, {name}", text.size(a), text.size(b), f"{b / a:.2f}" if a else "")
             for name, a, b in zip(CLASSES, planned.tolist(), moved.tolist()) if a or b]

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        axes.plot(layers, expected, "o", color=style.ORANGE, markersize=7, label="expected by the plan")
        axes.plot(layers, found, "x", color=style.BLUE, label="measured")
        axes.axhline(1, color=style.GREY, linestyle="--", linewidth=1)
        axes.set(xlabel="layer", ylabel="rows, fullest rank / mean",
                 ylim=(None, max(1.1, 1.05 * float(max(expected.max(), found.max())))))
        style.whole(axes.xaxis)
        style.above(axes)
    return Block(TITLE, says, Grid(("", ">expected", ">measured", ">measured / expected"), tuple(rows)),
                 Picture("planned", f"Points by layer, fullest rank over the mean: expected {expected.mean():.2f} "
                         f"on average, measured {found.mean():.2f}.", draw))
