"""Seeded traces of tokens and their experts, and slow answers to what the planner asks of them."""

from collections.abc import Callable

import numpy as np

from hpcmoe.files.plan import Weights
from hpcmoe.files.topology import Network
from hpcmoe.slots import Placement, Routing, Topology

WEIGHTS = Weights(tokens=128.0, row=14336.0, compute=2.5e-7, near_latency=2e-6, near_rate=450e9, far_latency=5e-6,
                  far_rate=50e9)
"""Those of a large model on a good network."""

Liking = Callable[[np.random.Generator, int, int], np.ndarray]
"""(draw, tokens, E) -> `[n, E]`: log-likelihood of each expert, up to a constant; tokens are in the order of time"""


def uniform(draw: np.random.Generator, tokens: int, experts: int) -> np.ndarray:
    """Any expert."""
    return np.zeros((tokens, experts))


def zipf(power: float) -> Liking:
    """The m-th of the experts, in any order, as likely as m^-power."""
    def like(draw: np.random.Generator, tokens: int, experts: int) -> np.ndarray:
        return np.tile(draw.permutation(-power * np.log(np.arange(1, experts + 1))), (tokens, 1))
    return like


def bursts(draw: np.random.Generator, tokens: int, experts: int) -> np.ndarray:
    """Again and again other experts are ten times as likely for a while."""
    hot = draw.random((16, experts)) < 0.15
    return np.log(10.0) * hot[np.arange(tokens) * 16 // tokens]


def drift(draw: np.random.Generator, tokens: int, experts: int) -> np.ndarray:
    """From one Zipf order to another."""
    first, last = (zipf(1.0)(draw, 1, experts)[0] for _ in range(2))
    part = np.linspace(0, 1, tokens)[:, None]
    return (1 - part) * first + part * last


def gated(draw: np.random.Generator, tokens: int, experts: int) -> np.ndarray:
    """As a gate that nobody trained chooses for tokens of a dozen kinds."""
    kinds = draw.normal(size=(12, 16))
    hidden = kinds[draw.choice(12, tokens, p=draw.dirichlet(np.ones(12)))] + draw.normal(size=(tokens, 16))
    return 2 * hidden @ draw.normal(size=(16, experts))


def planted(groups: int, inside: float = 0.8) -> Liking:
    """Each token likes the experts of one of the groups of E / groups experts, `planted_groups` of the same draw, so
    that most of its K are of it."""
    def like(draw: np.random.Generator, tokens: int, experts: int) -> np.ndarray:
        group = planted_groups(draw, experts, groups)
        mine = group == draw.integers(groups, size=tokens)[:, None]
        size = experts // groups
        return np.where(mine, np.log(inside / size), np.log((1 - inside) / max(experts - size, 1)))
    return like


def planted_groups(draw: np.random.Generator, experts: int, groups: int) -> np.ndarray:
    """`[E]`: the group of each expert, shuffled."""
    return draw.permutation(np.arange(experts) * groups // experts)


KINDS: dict[str, Liking] = {"uniform": uniform, "zipf": zipf(0.8), "bursts": bursts, "drift": drift, "gated": gated,
                            "planted": planted(4)}


def trace(like: Liking, ranks: int, experts: int, top_k: int, tokens: int, layers: int = 1, seed: int = 0) -> Routing:
    """The routing of so many tokens, dealt to the ranks one by one; all are sampled. Each layer has its own draw, which
    begins anew from (seed, layer)."""
    expert = np.empty((tokens, layers, top_k), np.int16)
    for layer in range(layers):
        draw = np.random.default_rng([seed, layer])
        worth = like(draw, tokens, experts) + draw.gumbel(size=(tokens, experts))
        expert[:, layer] = np.argpartition(-worth, top_k - 1, axis=1)[:, :top_k]
    return counted(expert, np.arange(tokens, dtype=np.int32) % ranks, ranks, experts)


def counted(expert: np.ndarray, rank: np.ndarray, ranks: int, experts: int) -> Routing:
    """The routing of tokens `[n, L, K]` of ranks `[n]`, all of them sampled."""
    load = np.zeros((expert.shape[1], ranks, experts), np.int64)
    for layer in range(expert.shape[1]):
        np.add.at(load[layer], (rank[:, None], expert[:, layer]), 1)
    return Routing(load, rank, expert)


def nodes(*sizes: int, near: tuple[float, float] = (2e-6, 450e9), far: tuple[float, float] = (5e-6, 50e9)) -> Topology:
    """So many ranks on each node; latency and rate of links inside and between them."""
    node = np.repeat(np.arange(len(sizes)), sizes).astype(np.int32)
    same, own = node[:, None] == node, np.eye(len(node), dtype=bool)
    latency, rate = (np.where(same, a, b) for a, b in zip(near, far))
    return Topology(node, np.where(own, 0, latency), np.where(own, np.inf, rate))


def measured(topology: Topology) -> Network:
    """As if it had been measured, each node on a host of its own."""
    hosts = [f"host {number}" for number in topology.node]
    return Network(topology, hosts, [""] * len(hosts), [""] * len(hosts), "an MPI")


def node_rows(routing: Routing, layer: int, placement: Placement, topology: Topology) -> float:
    """Rows that a token sends to other nodes in two hops, on the average, one by one; no expert has two slots."""
    of = {int(e): int(topology.node[r]) for e, r in zip(placement.expert, placement.rank)}
    sent = [len({of[int(e)] for e in experts} - {int(topology.node[rank])})
            for experts, rank in zip(routing.expert[:, layer], routing.rank)]
    return float(np.mean(sent))


def anneal(expert: np.ndarray, home: np.ndarray, node: np.ndarray, nodes: int, steps: int, seed: int = 0) -> int:
    """The fewest rows to other nodes that annealing finds, by swaps of two experts drawn at random.

    expert `[n, K]`; home `[n]`: the node of each token; node `[E]`: of each expert, to begin with.
    """
    n, E = len(expert), len(node)
    has = np.zeros((n, E), bool)
    has[np.arange(n)[:, None], expert] = True
    price = np.ones((n, nodes), np.int64)
    price[np.arange(n), home] = 0
    node, count = node.copy(), np.zeros((n, nodes), np.int64)
    np.add.at(count, (np.arange(n)[:, None], node[expert]), 1)
    of = [np.flatnonzero(has[:, e]) for e in range(E)]
    cost = best = int((price * (count > 0)).sum())
    draw = np.random.default_rng(seed)
    pairs, luck = draw.integers(E, size=(steps, 2)), -np.log(draw.random(steps))
    for step, heat in enumerate(np.geomspace(cost * 1e-2, max(cost * 2e-5, 1e-9), steps)):
        e, f = pairs[step]
        a, b = node[e], node[f]
        if a == b:
            continue
        with_e, with_f = of[e][~has[of[e], f]], of[f][~has[of[f], e]]
        change = ((price[with_e, b] * (count[with_e, b] == 0)).sum()
                  - (price[with_e, a] * (count[with_e, a] == 1)).sum()
                  + (price[with_f, a] * (count[with_f, a] == 0)).sum()
                  - (price[with_f, b] * (count[with_f, b] == 1)).sum())
        if change <= heat * luck[step]:
            for tokens, old, new in ((with_e, a, b), (with_f, b, a)):
                count[tokens, old] -= 1
                count[tokens, new] += 1
            node[e], node[f] = b, a
            cost += int(change)
            best = min(best, cost)
    return best
