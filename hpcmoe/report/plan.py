"""`plan`: from the results of a run to plan.h5; and the page that `show` prints of it."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from rich.console import Console

from hpcmoe import array, launch, paths, tables
from hpcmoe.engine.inputs import open_model
from hpcmoe.errors import InputError, JobError
from hpcmoe.files import h5, parts, plan, results, topology
from hpcmoe.files import routing as files_routing
from hpcmoe.files.plan import EXCHANGES, LINKS, TERMS, Plan, Weights
from hpcmoe.placement.cost import paces
from hpcmoe.placement.policy import POLICIES, Case, check
from hpcmoe.report import text
from hpcmoe.slots import Placement, Routing, Topology
from hpcmoe.spec import ModelSpec
from hpcmoe.traffic import CLASSES
from hpcmoe.types import STAGES

NEAR, FAR = (2e-6, 450e9), (5e-6, 50e9)
"""Latency and rate of links without a topology file: NVLink inside a node, and one 400 Gbit/s card for each GPU."""
COMPARED = ("linear", "load", "topology")
"""Policies that the page compares, beside the one that was asked for."""
MOST_RANKS = 4096
"""Of a plan: what is known of each two takes room."""
SHOWN = 3
"""Replicated experts that a row names."""


@dataclass(frozen=True)
class Asked:
    """What the command line says; None and "auto" leave a choice open."""

    policy: str
    ranks: int | None
    slots: int | None
    topology: Path | None
    per_node: int | None
    exchange: str
    seed: int


@dataclass(frozen=True)
class Run:
    """What results tell of a run: of its groups of ranks together, as if they were one."""

    routing: Routing
    model: ModelSpec
    node: np.ndarray
    """`[R]` int64: as the job had it"""
    tokens: float
    """of a step on a rank"""
    row: float
    """bytes of a row"""
    compute: float
    """seconds to compute a row of an expert"""
    shards: int
    """of an expert: what is said of ranks here is of groups of so many, but for `node`"""


def make(source: Path, output: Path, asked: Asked) -> None:
    """Plans, writes, and prints a comparison. Raises `JobError`, `InputError`."""
    paths.check_output(output, source, *([asked.topology] if asked.topology else []))
    run = read(source)
    between = _between(run, source, asked)
    near, far = ((float(np.median(latency)) if len(latency) else 0.0, 1 / pace if pace else 0.0)
                 for latency, pace in zip(_latencies(between), paces(between)))
    weights = Weights(run.tokens, run.row, run.compute, *near, *far)
    given = Case(run.routing, between, weights, asked.slots or -(-run.model.experts // between.ranks), EXCHANGES[0],
                 asked.seed)
    check(given)

    def plans(policy: str, exchange: str) -> Plan:
        case = replace(given, exchange=exchange)
        placements = POLICIES[policy](case)
        return Plan(run.model.name, given.experts, placements, between.node, policy, asked.seed, exchange,
                    LINKS[asked.topology is None], weights, case.predict(placements))

    ways = (asked.exchange,) if asked.exchange != "auto" else EXCHANGES if between.nodes > 1 else EXCHANGES[:1]
    mine = [plans(asked.policy, exchange) for exchange in ways]
    best = min(mine, key=lambda p: p.predicted.total)  # flat at a tie
    others = [plans(policy, best.exchange) for policy in COMPARED
              if policy != asked.policy and (policy != "topology" or find_spec("scipy"))]
    plan.write(output, best)
    if run.shards > 1:
        text.console().print(f"parallel.expert_tensor = {run.shards} in that run: what are ranks here are groups of "
                             f"{run.shards}")
    _compare(text.console(), [*others, *mine], best, output)


def read(source: Path) -> Run:
    """What the results in `source` tell; groups are taken to lie on nodes as the first one does. Raises
    `InputError`."""
    routing = results.routing(source)
    with h5.reading(source, "results") as file:
        routing = files_routing.folded(routing, parts.groups(file, source)[1])
        ranks = routing.computed.shape[1]
        steps, hosts = results.steps(file, source), h5.strings(file, "host", source)[:ranks]
        model, dtype, per_node, shards = _job(h5.attribute(file, "job", source, str), source)
    if ranks > MOST_RANKS:
        raise InputError(f"{source}: was made by {ranks} ranks, and plans are for {MOST_RANKS} at most")
    layers = [layer for layer in range(len(routing.load)) if routing.load[layer].any()]
    L, _, E = routing.load.shape
    there = (model.layers, model.experts, list(model.moe_layers), model.moe.top_k if model.moe else 0)
    seen = (routing.expert[:, layers] >= 0).all(axis=2).any(axis=0)
    if len(hosts) < ranks:
        raise InputError(f"{source}: names {len(hosts)} hosts of {ranks} ranks: make the file again")
    if there != (L, E, layers, routing.expert.shape[2]) or not seen.all() or not layers:
        raise InputError(f"{source}: where its tokens went does not fit {model.name}, the model that it names, or none "
                         "went anywhere: give the results of another run")
    if ranks % shards:
        raise InputError(f"{source}: {ranks} ranks are no groups of {shards}, as its job says: make the file again")
    rows, spent = routing.load.sum(dtype=np.float64), steps.mean[:, STAGES.index("expert")].sum() * ranks / shards
    tokens = steps.tokens.sum() / max(len(steps.tokens), 1) / ranks * shards
    if not (np.isfinite(spent) and spent >= 0 and tokens > 0):
        raise InputError(f"{source}: timings has values that cannot be: make the file again")
    node = np.arange(len(hosts)) // per_node if per_node else launch.number(hosts)
    return Run(_of_groups(routing, shards), model, np.array(node), float(tokens), float(model.hidden * dtype.itemsize),
               float(spent / rows), shards)


def _of_groups(routing: Routing, shards: int) -> Routing:
    """The routing of groups of so many ranks; each rank of a group computed as many rows as the first."""
    load = routing.load
    if load.shape[1] > 1:
        load = load.reshape(len(load), -1, shards, load.shape[2]).sum(axis=2)
    return Routing(load, routing.rank // shards, routing.expert, routing.computed[:, ::shards])


def _job(job: str, source: Path) -> tuple[ModelSpec, np.dtype, int, int]:
    """The model of the job, the dtype of its rows, its `parallel.ranks_per_node` and `expert_tensor`."""
    try:
        table = tables.parse(job)
        path, dtype = Path(table["model"]), np.dtype(array.DTYPES[table["compute"]["dtype"]])
        per_node, shards = (max(least, int(table.get("parallel", {}).get(name, least)))
                            for name, least in (("ranks_per_node", 0), ("expert_tensor", 1)))
    except (tables.Bad, KeyError, TypeError, ValueError, AttributeError):
        raise InputError(f"{source}: attribute job is no job: make the file again") from None
    return open_model(path).spec, dtype, per_node, shards


def _between(run: Run, source: Path, asked: Asked) -> Topology:
    """What lies between the ranks of the plan; of groups, between their first ones."""
    found, shards = _between_ranks(run, source, asked), run.shards
    if found.ranks % shards:
        raise JobError(f"{found.ranks} ranks are no groups of {shards}, as {source} had them (parallel.expert_tensor): "
                       f"give --ranks a multiple of {shards}")
    node = np.array(launch.number(found.node[::shards].tolist()), np.int32)
    return Topology(node, found.latency[::shards, ::shards], found.rate[::shards, ::shards])


def _between_ranks(run: Run, source: Path, asked: Asked) -> Topology:
    if asked.topology:
        found = topology.read(asked.topology).topology
        if asked.per_node or asked.ranks not in (None, found.ranks):
            raise JobError(f"{asked.topology} is of {found.ranks} ranks, and tells how they lie on nodes: leave out "
                           "--ranks and --ranks-per-node")
        return found
    ranks = asked.ranks or len(run.node)
    if asked.per_node:
        node = np.arange(ranks) // asked.per_node
    elif ranks == len(run.node):
        node = run.node
    else:
        raise JobError(f"--ranks {ranks}: {source} tells the nodes of its own {len(run.node)} ranks only: give "
                       "--ranks-per-node or --topology too")
    same, own = node[:, None] == node, np.eye(ranks, dtype=bool)
    latency, rate = (np.where(same, near, far) for near, far in zip(NEAR, FAR))
    return Topology(node.astype(np.int32), np.where(own, 0, latency), np.where(own, np.inf, rate))


def _latencies(between: Topology) -> tuple[np.ndarray, np.ndarray]:
    """Of links inside nodes, and between them."""
    same, links = between.node[:, None] == between.node, ~np.eye(between.ranks, dtype=bool)
    return between.latency[same & links], between.latency[~same]


def _compare(out: Console, found: Sequence[Plan], best: Plan, output: Path) -> None:
    out.print(f"{_where(best)}. Expected of a step with {best.weights.tokens:.1f} tokens on each rank: unevenness of "
              "the ranks' rows, rows that a token sends to other nodes, bytes there and back, time of the slowest rank")
    grid = text.table("policy", "exchange", ">replicas", ">(max-mean)/mean", ">rows/token out", ">to other nodes",
                      ">slowest rank", "")
    for p in found:
        said = p.predicted
        extra = sum(len(one.rank) - p.experts for one in p.placements if len(one.rank))
        grid.add_row(p.policy, p.exchange, str(extra), f"{said.imbalance.mean():.3f}",
                     f"{said.crossing[said.layers].mean():.3f}", text.size(said.bytes[:, -1].sum()),
                     text.seconds(said.total), "is written" if p is best else "")
    out.print(grid)
    quickest = min(found, key=lambda p: p.predicted.total)
    if quickest.predicted.total < 0.99 * best.predicted.total:
        out.print(f"policy {quickest.policy} with exchange {quickest.exchange} is expected to be quicker")
    if best.links == LINKS[1]:
        out.print("rates and latencies are assumed: measure them with hpcmoe bench topology, and give --topology")
    out.print(f"{output} is written: hpcmoe show {output} tells all")


def _where(p: Plan) -> str:
    nodes = int(p.node.max()) + 1
    return f"{p.model}, {p.experts} experts on {text.plural(p.ranks, 'rank')} of {text.plural(nodes, 'node')}"


def page(out: Console, p: Plan, limit: int) -> None:
    """Prints a plan, `limit` layers of it at most."""
    said = p.predicted
    out.print(f"{_where(p)}, by policy {p.policy} with seed {p.seed}, for exchange {p.exchange}")
    out.print(f"expected of a step: {text.seconds(said.total)} on the slowest ranks of all layers together, "
              f"{text.size(said.bytes.sum())}\n")
    grid = text.table("weight", ">value", "what it is")
    for field in fields(Weights):
        grid.add_row(field.name, f"{getattr(p.weights, field.name):.4g}", field.metadata["help"])
    out.print(grid)
    out.print(f"latencies and rates are {p.links}; time of a rank = compute + bytes / rate of each link + latencies\n")
    shown = list(zip(said.layers.tolist(), said.imbalance))[:limit]
    grid = text.table(">layer", ">slots", "replicated", ">(max-mean)/mean", ">rows/token out",
                      *(f">{name}" for name in CLASSES))
    for layer, uneven in shown:
        grid.add_row(str(layer), str(len(p.placements[layer].rank)), _replicated(p.placements[layer]), f"{uneven:.3f}",
                     f"{said.crossing[layer]:.3f}", *(text.size(count) for count in said.bytes[layer]))
    out.print("Rows of the ranks; rows that a token sends to other nodes; bytes by where they go")
    out.print(grid)
    grid = text.table(">layer", *(f">{name}" for name in TERMS), ">together")
    for layer, _ in shown:
        grid.add_row(str(layer), *(_us(t) for t in said.seconds[layer]), _us(said.seconds[layer].sum()))
    out.print("\nTime of the slowest rank")
    out.print(grid)
    if len(said.layers) > limit:
        out.print(f"… and {len(said.layers) - limit} more layers (--limit shows more)")


def _us(span: float) -> str:
    return f"{span * 1e6:,.1f} µs"


def _replicated(placement: Placement) -> str:
    """Experts with most slots: "3 x4, 7 x2 …"."""
    some = [f"{e} x{placement.copies[e]}" for e in np.argsort(-placement.copies, kind="stable")
            if placement.copies[e] > 1]
    return ", ".join(some[:SHOWN]) + (" …" if len(some) > SHOWN else "")
