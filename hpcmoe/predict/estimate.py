"""A step in closed form: the sums that a simulation comes to where nothing waits for chance, from the same formulas.

A micro-batch computes for C, keeps links busy for B, and waits for latencies Y; m of them take m (C + B + Y) one after
another. In turns they take max(m C, m B, C + B + Y): what all of them ask of the stream, or of the links, or the way of
a single one, whichever is longest.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hpcmoe.engine.batch import split
from hpcmoe.predict import cost, demand, flow
from hpcmoe.predict.cost import Work
from hpcmoe.predict.demand import classes
from hpcmoe.predict.layout import Layout
from hpcmoe.predict.machine import Hardware
from hpcmoe.predict.meetings import HEADER
from hpcmoe.predict.rows import Drawn, Journey
from hpcmoe.predict.simulate import Given
from hpcmoe.spec import ModelSpec
from hpcmoe.types import Batch, Span

TERMS = ("same node", "other nodes", "messages", "latency")
"""What the time of an exchange is made of."""


@dataclass(frozen=True)
class Estimate:
    """Of one step."""

    seconds: float
    compute: float
    exchange: float
    """of all its micro-batches, one after another"""
    terms: tuple[float, ...]
    """`TERMS` of all exchanges, each alone"""

    @property
    def bound(self) -> str:
        """The longest term of the exchange."""
        return TERMS[int(np.argmax(self.terms))] if any(self.terms) else ""


def estimate(model: ModelSpec, hw: Hardware, layout: Layout, given: Given, batch: Batch) -> Estimate:
    """The step of ranks that each have `batch`, the fullest of each layer counting, with the rows that are expected."""
    alike = demand.classes(layout.group, 0, 1.0, even=True)
    even = bool((given.demand.chosen == given.demand.chosen[:, :1]).all()) and model.experts % layout.group == 0
    drawn = Drawn(model, hw, layout, given.demand, alike if even else classes(layout.group, 0, 1.0), given.seed, True)
    part = split(batch, layout.parts)[0]
    compute, terms = _part(model, hw, layout, drawn, part)
    compute *= given.factor if given.slowed else 1.0
    if layout.overlapped and layout.parts > 1:
        compute = compute * hw.device.in_turns + hw.overhead.turn * (2 + 3 * len(model.moe_layers))
    m, busy = layout.parts, max(terms[:3])
    exchange = busy + terms[3]
    outside = hw.overhead.step + flow.small(layout.group, hw.links, HEADER, drawn.at.many)
    alone = compute + exchange
    each = max(m * compute, m * busy, alone) if layout.overlapped else m * alone
    return Estimate(outside + each, m * compute, m * exchange, tuple(m * term for term in terms))


def _part(model: ModelSpec, hw: Hardware, layout: Layout, drawn: Drawn, batch: Batch) -> tuple[float, list[float]]:
    """Seconds that a micro-batch computes, and `TERMS` of what it exchanges."""
    T, team, device = batch.rows, layout.team, hw.device
    seconds = cost.head(model, hw, len(batch.wanted)).alone + hw.overhead.host + hw.launch.begin
    terms = [0.0] * len(TERMS)
    graph = cost.recurs(hw, batch.spans)
    seconds += _attention(model, hw, layout, batch.spans, graph)
    if team > 1:
        near = team <= drawn.at.size.min()
        for moved in cost.team_bytes(model, device, team, T):
            terms[0 if near else 1] += model.layers * moved / (hw.links.near_rate if near else hw.links.far_rate)
            terms[3] += model.layers * (hw.links.start + (hw.links.near_latency if near else hw.links.far_latency))
        seconds += model.layers * (cost.team_join(model, hw, team, T).seconds + 4 * hw.overhead.host)
    layers = model.moe_layers
    if model.dense:
        seconds += (model.layers - len(layers)) * _taken(cost.dense(model, hw, T), graph)
    if not layers:
        return seconds, terms
    rows = drawn(layers[0], 0, T)
    fixed = [cost.pack(hw, float(rows.there.rows.max()), model.hidden), cost.combine(model, hw, T, layout.shards)]
    if model.moe and model.moe.shared_hidden:
        fixed.append(cost.shared(model, hw, T))
    each = _taken(cost.gate(model, hw, T), graph) + sum(work.alone for work in fixed)
    launches = cost.launches(hw, rows.experts[5], rows.computed)
    each += float(np.maximum(rows.experts[2:5].sum(axis=0), launches).max())
    each += 5 * hw.overhead.host + 2 * hw.overhead.exchange
    if layout.slots(model) > 1 or len(rows.there.hops) > 1:
        each += hw.launch.order
    if layout.group == 1:
        return seconds + len(layers) * each, terms
    small = flow.small(layout.group, hw.links, HEADER, drawn.at.many)
    for journey in (rows.there, rows.home):
        terms = [a + len(layers) * b for a, b in zip(terms, _terms(journey, hw))]
    terms[3] += len(layers) * small
    return seconds + len(layers) * each, terms


def _taken(work: Work, graph: bool) -> float:
    return work.seconds if graph else work.alone


def _attention(model: ModelSpec, hw: Hardware, layout: Layout, spans: Sequence[Span], graph: bool) -> float:
    """Of all layers; those that see equally far cost the same."""
    windows: dict[int, list[int]] = {}
    for layer in range(model.layers):
        windows.setdefault(model.attention.window_in(layer), []).append(layer)
    every = tuple(spans) * layout.team
    return sum(len(layers) * _taken(cost.attention(model, hw, layers[0], layout.team, every), graph)
               for layers in windows.values())


def _terms(journey: Journey, hw: Hardware) -> list[float]:
    """`TERMS` of one direction, its hops one after another."""
    found = [0.0] * len(TERMS)
    for hop in journey.hops:
        for kind, rate in enumerate((hw.links.near_rate, hw.links.far_rate)):
            found[kind] += float(np.maximum(hop.out[kind], hop.come[kind]).max()) / rate
        found[2] += hop.seconds * float(hop.messages.max())
        far = hop.out[1].any() or hop.come[1].any()
        found[3] += hw.links.start + (hw.links.far_latency if far else hw.links.near_latency)
    return found
