"""The page that `bench exchange` prints, and `show` of the file that it wrote."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console

from hpcmoe import array, launch, paths
from hpcmoe.files import exchange
from hpcmoe.report import text


def bench_exchange(rows: Sequence[int], hidden: int, dtype: str, device: str, output: Path | None) -> int:
    """Measures on all ranks; returns the exit code. Collective."""
    world = launch.start(device)
    return launch.guarded(world, lambda: _run(world, rows, hidden, dtype, output))


def _run(world: launch.World, rows: Sequence[int], hidden: int, dtype: str, output: Path | None) -> None:
    from hpcmoe.bench import exchange as bench  # starts MPI
    launch.check_gpus(world)
    kind = array.DTYPES[dtype]

    def check() -> None:
        bench.check(world.size, rows, hidden * kind.itemsize // 2)
        if output:
            paths.check_output(output)
    launch.on_root(world, check)
    figures = bench.measure(world, rows, hidden, kind)
    table = exchange.Table(figures, hidden, dtype, bench.ROUNDS, world.hosts, world.library,
                           world.memory)
    if world.rank == 0:
        page(text.console(), table)
    if output:
        launch.on_root(world, lambda: exchange.write(output, table))


def page(out: Console, table: exchange.Table) -> None:
    """Prints the table."""
    ranks = len(table.host)
    out.print(f"One direction of the exchange, {text.plural(ranks, 'rank')} on "
              f"{text.plural(len(set(table.host)), 'host')}, H {table.hidden} {table.dtype} in "
              f"{table.memory} memory; {table.library}")
    out.print(f"Medians of {table.rounds} rounds in which all take turns; the slowest rank counts. Raw is the "
              "library's Ialltoallv alone, bare a persistent request of the padded rows alone. Times in µs; GB/s is "
              "what the busiest rank sends or gets by alltoallv.")
    for pattern in dict.fromkeys(f.pattern for f in table.figures):
        grid = text.table(">rows", ">size", ">raw", ">alltoallv", ">of raw", ">bare", ">persistent", ">of bare",
                          ">headers", ">pack", ">GB/s")
        for f in (f for f in table.figures if f.pattern == pattern):
            grid.add_row(str(f.rows), text.size(f.size), _us(f.raw), _us(f.alltoallv), _times(f.alltoallv / f.raw),
                         _us(f.request), _us(f.persistent), _times(f.persistent / f.request), _us(f.headers),
                         _us(f.pack), f"{(ranks - 1) * f.size / f.alltoallv / 1e9:.2f}")
        out.print(f"\n{pattern.capitalize()}")
        out.print(grid)


def _times(ratio: float) -> str:
    return "" if np.isnan(ratio) else f"{ratio:.2f}"


def _us(span: float) -> str:
    return "" if np.isnan(span) else f"{span * 1e6:,.0f}"
