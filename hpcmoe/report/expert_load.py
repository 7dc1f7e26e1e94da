"""Figures of where tokens went: experts by layer, and ranks."""

from typing import Any

import numpy as np

from hpcmoe.report import bins, style, text
from hpcmoe.report.blocks import SHOWN, Block, Grid, Picture
from hpcmoe.report.measured import Measured


def heat(run: Measured) -> Block:
    """Rows of each expert in each layer."""
    title, busy = "Load of the experts", run.busy
    if not len(busy):
        return Block(title, "left out: no rows went to experts.")
    load = run.load[busy]
    share = load / load.mean(axis=1, keepdims=True)
    most = share.max(axis=1)
    worst, count = int(most.argmax()), run.load.shape[1]
    expert = int(share[worst].argmax())
    idle = int((load == 0).sum())
    says = (f"the busiest expert of a layer has {most.mean():.2f} times the rows of the layer's mean (mean of "
            f"{text.plural(len(busy), 'layer')}); the worst is expert {expert} in layer {busy[worst]}, "
            f"{most[worst]:.2f} times. {idle} of {load.size:,} had no row at all. Even would be 1 everywhere.")
    shown = bins.shrink(share, np.maximum)
    if shown.shape != share.shape:
        says += f" The picture shows the largest of {load.shape[0]} x {count} in each of {shown.shape[0]} x " \
                f"{shown.shape[1]} cells."
    order = np.sort(np.argsort(-most, kind="stable")[:SHOWN])
    rows = tuple((str(busy[n]), f"{int(load[n].sum()):,}", str(int(share[n].argmax())), f"{most[n]:.2f}",
                  f"{share[n].min():.2f}", str(int((load[n] == 0).sum()))) for n in order.tolist())

    def draw(figure: Any) -> None:
        _map(figure, shown, (len(busy), count), "expert", "layer", "rows / mean of the layer")
        axes = figure.axes[0]
        some = np.unique(np.linspace(0, len(busy) - 1, min(len(busy), 8)).round().astype(int))
        axes.set_yticks(some, [str(busy[n]) for n in some])
    return Block(title, says, Grid((">layer", ">rows", ">busiest expert", ">busiest / mean", ">least / mean",
                                    ">without rows"), rows),
                 Picture("experts", f"Map of rows by layer and expert over the layer's mean, {len(busy)} layers and "
                         f"{count} experts: from {share.min():.2f} to {most[worst]:.2f}, the largest at expert "
                         f"{expert} of layer {busy[worst]}.", draw, 3.6))


def _map(figure: Any, values: np.ndarray, shape: tuple[int, int], across: str, down: str, what: str) -> None:
    """values stand for a table of `shape`, whose numbers are on the axes."""
    rows, columns = shape
    axes = figure.subplots()
    image = axes.imshow(values, cmap=style.HEAT, aspect="auto", interpolation="nearest", vmin=0,
                        extent=(-0.5, columns - 0.5, rows - 0.5, -0.5))
    axes.set(xlabel=across, ylabel=down)
    axes.grid(False)
    style.whole(axes.xaxis)
    style.whole(axes.yaxis)
    bar = figure.colorbar(image, ax=axes, pad=0.02)
    bar.outline.set_visible(False)
    bar.set_label(what)


def traffic(run: Measured) -> Block:
    """Rows from each rank to each other, or to each expert where results do not tell who held which."""
    title, routing = "Traffic between ranks", run.routing
    if run.ranks == 1:
        return Block(title, "left out: there is one rank.")
    if routing is None or routing.load.shape[1] == 1:
        return Block(title, "left out: " + ("the file does not tell where its tokens went." if routing is None else
                                            "of so many ranks results keep the rows together only; see the classes of "
                                            "links."))
    to_expert = routing.load.sum(axis=0)
    between = _between(to_expert, routing.computed.sum(axis=0))
    matrix, where, verb = (between, "rank", "computed") if between is not None else (to_expert, "expert", "got")
    total, into = int(matrix.sum()), matrix.sum(axis=0)
    if not total:
        return Block(title, "left out: no rows went to experts.")
    full = int(into.argmax())
    says = (f"{total:,} rows by the rank of their token and by {where}; {where} {full} {verb} most, "
            f"{into[full] / max(into.mean(), 1e-9):.2f} times the mean")
    if between is not None:
        says += f", and {100 * np.trace(between) / total:.0f} % stayed on their rank. Counted by experts: a row that " \
                "two experts of one rank compute is sent once."
    else:
        says += ". Experts lay by a plan, had replicas or moved, so results tell the way to experts, not to ranks."
    shown = bins.shrink(matrix, np.add)
    if shown.shape != matrix.shape:
        says += f" The picture adds up neighbours: {matrix.shape[0]} x {matrix.shape[1]} in {shown.shape[0]} x " \
                f"{shown.shape[1]} cells."
    order = np.sort(np.argsort(-into, kind="stable")[:SHOWN])
    sources = np.argmax(matrix, axis=0)
    rows = tuple((str(n), f"{int(into[n]):,}", f"{into[n] / max(into.mean(), 1e-9):.2f}",
                  f"rank {sources[n]} ({int(matrix[sources[n], n]):,})") for n in order.tolist())

    def draw(figure: Any) -> None:
        _map(figure, shown, matrix.shape, f"to {where}", "from rank", "rows")
    alt = f"Map of rows from {text.plural(len(matrix), 'rank')} to {len(into)} {where}s: {where} {full} {verb} most, " \
          f"{into[full] / max(into.mean(), 1e-9):.2f} times the mean."
    return Block(title, says, Grid((f">to {where}", ">rows", ">over mean", "most from"), rows),
                 Picture("traffic", alt, draw, 3.8))


def _between(to_expert: np.ndarray, computed: np.ndarray) -> np.ndarray | None:
    """`[R, R]` rows from rank to rank where experts lay in order; None where what ranks computed, `[R]`, tells that
    they did not. to_expert is `[R, E]`."""
    ranks, experts = to_expert.shape
    holder = np.arange(experts) * ranks // experts
    between = np.zeros((ranks, ranks), np.int64)
    np.add.at(between.T, holder, to_expert.T)
    return between if len(computed) == ranks and np.array_equal(between.sum(axis=0), computed) else None
