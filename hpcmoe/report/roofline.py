"""How near the experts came to what the device can do: arithmetic against bytes, by the size of a step."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from hpcmoe.array import DTYPES
from hpcmoe.errors import InputError
from hpcmoe.predict.machine import Device, Hardware
from hpcmoe.report import bins, style, text
from hpcmoe.report.blocks import SHOWN, Block, Grid, Picture
from hpcmoe.report.measured import Measured, at, model
from hpcmoe.spec import ModelSpec, Moe
from hpcmoe.types import STAGES

TITLE = "Roofline of the experts"


@dataclass(frozen=True)
class Points:
    """Steps of about one size, `[n]` float64 each: tokens of a step on all its ranks, and of a rank FLOP/s that its
    experts reached, and FLOPs for each byte that they read and wrote."""

    tokens: np.ndarray
    flops: np.ndarray
    intensity: np.ndarray


def points(run: Measured, spec: ModelSpec, moe: Moe) -> Points:
    """By the sizes of steps, `SHOWN` at most.

    A row costs 6 H I FLOPs. Bytes are those of the weights of experts that have rows, as many as even routing would
    give, E (1 - (1 - K/E)^T), and of the rows; a step cut in micro-batches reads weights again, which is not counted.
    """
    seconds = run.steps.mean[:, STAGES.index("expert")]
    known = np.flatnonzero((seconds > 0) & (run.steps.tokens > 0))
    ranks = run.ranks / run.groups
    tokens, seconds, layers = run.steps.tokens[known].astype(np.float64), seconds[known], len(run.busy)
    itemsize = DTYPES[str(at(run, "compute.dtype", "bfloat16"))].itemsize
    row, shared = 6.0 * spec.hidden * moe.hidden, 6.0 * spec.hidden * moe.shared_hidden
    work = layers * tokens * (moe.top_k * row + shared) / ranks
    touched = moe.experts * (1 - (1 - moe.top_k / moe.experts) ** tokens) / ranks
    read = layers * itemsize * (3 * spec.hidden * (touched * moe.hidden + moe.shared_hidden)
                                + 2 * spec.hidden * moe.top_k * tokens / ranks)
    sizes = np.unique(tokens)
    group = np.searchsorted(bins.groups(len(sizes), SHOWN), np.searchsorted(sizes, tokens), "right") - 1

    def added(values: np.ndarray) -> np.ndarray:
        return np.bincount(group, values)
    steps = added(np.ones_like(tokens))
    return Points(added(tokens) / steps, added(work) / added(seconds), added(work) / added(read))


def roofline(run: Measured, hw: Hardware | None) -> Block:
    """Measured points, under the roof of `hw` where that is given: what its device can do at most."""
    try:
        spec = model(run)
        dtype = at(run, "compute.dtype", "bfloat16")
        if spec.moe is None or not len(run.busy) or dtype not in DTYPES:
            return Block(TITLE, "left out: no rows went to experts.")
        found = points(run, spec, spec.moe)
    except InputError as error:
        return Block(TITLE, f"left out, since the model's shapes are not known: {error}.")
    if not len(found.tokens):
        return Block(TITLE, "left out: no step spent time in experts.")
    best = int(found.flops.argmax())
    says = (f"a rank's experts reached {_flops(found.flops[best])} at {found.tokens[best]:,.0f} tokens a step, with "
            f"{found.intensity[best]:,.1f} FLOPs for each byte. Bytes are counted as even routing would read weights, "
            "once a step.")
    columns: tuple[str, ...] = (">tokens a step", ">FLOPs a byte", ">reached")
    rows: list[tuple[str, ...]] = [(f"{t:,.0f}", f"{i:,.1f}", _flops(f))
                                   for t, i, f in zip(found.tokens, found.intensity, found.flops)]
    if hw is None:
        says += " Without a picture: --hardware names a machine, and so what its devices can do."
        return Block(TITLE, says, Grid(columns, tuple(rows)))
    over = hw.device
    limit = np.minimum(over.flops, over.rate * found.intensity)
    shares = 100 * found.flops / limit
    says += (f" That is {shares[best]:.0f} % of what {_flops(over.flops)} and {text.size(over.rate)}/s, a "
             f"device of {hw.name}, allow there.")
    rows = [(*row, f"{share:.0f} %") for row, share in zip(rows, shares)]
    return Block(TITLE, says, Grid((*columns, ">of the roof"), tuple(rows)),
                 Picture("roofline", f"Points under a roof, FLOP/s of a rank's experts by FLOPs a byte: at most "
                         f"{_flops(found.flops[best])}, {shares[best]:.0f} % of the roof.",
                         lambda figure: _draw(figure, found, over)))


def _draw(figure: Any, found: Points, over: Device) -> None:
    axes = figure.subplots()
    ridge = over.flops / over.rate
    ends = np.array([min(found.intensity.min(), ridge) / 3, ridge, max(found.intensity.max(), ridge) * 3])
    axes.loglog(ends, np.minimum(over.flops, over.rate * ends), color=style.GREY, linewidth=2, label="roof")
    size = 15 + 60 * np.sqrt(found.tokens / found.tokens.max())
    axes.scatter(found.intensity, found.flops, size, color=style.BLUE, edgecolor="white", linewidth=0.5, zorder=3,
                 label="steps; larger: more tokens")
    axes.set(xlabel="FLOPs a byte", ylabel="FLOP/s of a rank")
    style.above(axes)


def _flops(rate: float) -> str:
    for unit, name in ((1e12, "TFLOP/s"), (1e9, "GFLOP/s")):
        if rate >= unit:
            return f"{rate / unit:,.1f} {name}"
    return f"{rate / 1e6:,.1f} MFLOP/s"
