"""The page that `bench topology` prints, and `show` of the file that it wrote."""

from pathlib import Path

import numpy as np
from rich.console import Console

from hpcmoe import launch, paths, switches
from hpcmoe.files import topology
from hpcmoe.files.topology import Network
from hpcmoe.report import text


def bench_topology(ranks_per_node: int, device: str, output: Path | None) -> int:
    """Measures on all ranks; returns the exit code. Collective."""
    world = launch.start(device)
    return launch.guarded(world, lambda: run(world, ranks_per_node, output))


def run(world: launch.World, ranks_per_node: int, output: Path | None) -> None:
    """Measures, prints, and writes `output` where it is given. Collective. Raises `Agreed`."""
    from hpcmoe.bench import topology as bench  # starts MPI
    launch.check_gpus(world)

    def check() -> None:
        bench.check(world.size)
        if output:
            paths.check_output(output)
    launch.on_root(world, check)
    network = bench.measure(launch.with_nodes(world, ranks_per_node))
    if world.rank == 0:
        page(text.console(), network)
    if output:
        launch.on_root(world, lambda: topology.write(output, network))


def page(out: Console, network: Network) -> None:
    """Prints a line for each class of links, and the worst links."""
    found = network.topology
    out.print(f"Links between {text.plural(found.ranks, 'rank')} on {text.plural(found.nodes, 'node')} of "
              f"{text.plural(len(set(network.host)), 'host')}, messages in {network.memory} memory; {network.library}")
    out.print("Medians of each class, the least and the most. Latencies in µs, each alone between its nodes; rates in "
              "GB/s, while as much comes back and all other ranks of both nodes do the same.")
    grid = text.table("", ">links", ">latency", ">least", ">most", ">rate", ">least", ">most")
    links = switches.links(found.node, network.leaf)
    for number, name in enumerate(switches.LINKS[1:], 1):
        some = links == number
        if some.any():
            grid.add_row(_called(name, network), str(some.sum()), *_summary(found.latency[some], 1e-6),
                         *_summary(found.rate[some], 1e9))
    out.print(grid)
    if found.ranks > 1:
        others = links > 0
        out.print("Longest latency: " + _link(network, int(np.where(others, found.latency, -1).argmax())))
        out.print("Lowest rate:     " + _link(network, int(np.where(others, found.rate, np.inf).argmin())))


def _called(name: str, network: Network) -> str:
    """A class of links; where nothing is known of switches, nodes are just other nodes."""
    return "other nodes" if name == "same switch" and not network.leaf.any() else name


def _summary(values: np.ndarray, unit: float) -> list[str]:
    return [_number(value / unit) for value in (np.median(values), values.min(), values.max())]


def _number(value: float) -> str:
    """With three digits that mean something: 1,234, 12.3, 0.0123."""
    return f"{value:,.{min(9, max(0, 2 - int(np.floor(np.log10(value)))))}f}"


def _link(network: Network, place: int) -> str:
    a, b = divmod(place, network.topology.ranks)
    latency, rate = network.topology.latency[a, b] / 1e-6, network.topology.rate[a, b] / 1e9
    return (f"rank {a} on {network.host[a]} to rank {b} on {network.host[b]}, {_number(latency)} µs, {_number(rate)} "
            "GB/s")
