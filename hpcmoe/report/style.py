"""How all pictures look: colours that differ in grey and to the colour-blind, sizes that can be read on a phone."""

import io
from collections.abc import Mapping
from typing import Any

import numpy as np

from hpcmoe.report.blocks import Picture
from hpcmoe.types import STAGES

WIDTH, DPI = 5.6, 200
"""Inches, and pixels of one: a picture is as sharp on a page of 1280 pixels, and its letters have 10 on one of 400."""
BLUE, ORANGE, GREEN, RED, GREY = "#0072b2", "#e69f00", "#009e73", "#d55e00", "#777777"
"""Of Okabe and Ito."""
HEAT = "cividis"
"""Brighter is more, in grey too."""
HATCH = "///"
"""Of the second of two kinds of bars: grey prints tell them apart."""
LOOK: Mapping[str, Any] = {
    "font.family": "DejaVu Sans", "font.size": 10, "axes.labelsize": 10, "legend.fontsize": 9,
    "xtick.labelsize": 9, "ytick.labelsize": 9, "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "axes.axisbelow": True, "grid.color": "#dddddd", "grid.linewidth": 0.6, "axes.edgecolor": GREY,
    "legend.frameon": False, "lines.linewidth": 1.5, "hatch.linewidth": 0.6,
    "figure.facecolor": "white", "axes.formatter.useoffset": False, "axes.formatter.limits": (-4, 7)}


def png(picture: Picture) -> bytes:
    """The picture, drawn. Needs matplotlib."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure  # without pyplot, which would look for a screen
    with rc_context(LOOK):  # type: ignore[arg-type]  # its stub knows no key but literals
        figure = Figure(figsize=(WIDTH, picture.height), layout="constrained")
        picture.draw(figure)
        out = io.BytesIO()
        figure.savefig(out, format="png", dpi=DPI)
    return out.getvalue()


def stages(figure: Any, first: np.ndarray, second: np.ndarray, labels: tuple[str, str], unit: str) -> None:
    """Two bars for each of `types.STAGES`, one below the other; first and second `[len(STAGES)]`."""
    axes, place = figure.subplots(), np.arange(len(STAGES))
    axes.barh(place - 0.2, first, 0.4, color=BLUE, label=labels[0])
    axes.barh(place + 0.2, second, 0.4, color=ORANGE, hatch=HATCH, edgecolor="white", linewidth=0, label=labels[1])
    axes.set_yticks(place, STAGES)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set_xlabel(unit)
    above(axes)


def above(axes: Any, columns: int = 2) -> None:
    """The legend over the axes, where it hides nothing."""
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, borderaxespad=0.2, handlelength=1.5)


def whole(axis: Any) -> None:
    """Ticks of an axis that counts."""
    from matplotlib.ticker import MaxNLocator
    axis.set_major_locator(MaxNLocator(integer=True, nbins=7, min_n_ticks=1))
