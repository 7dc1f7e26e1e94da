"""The verbs under `bench`, each of which imports what it needs when it is called."""

import sys
from pathlib import Path

import click

from hpcmoe.errors import JobError

FILE = click.Path(path_type=Path)
SET = click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE",
                   help="Override a key of the job, as generate.max_new_tokens=16. Repeats.")


@click.group(short_help="Measure parts of the program, with peers beside it.")
def bench() -> None:
    """Measure parts of the program, with peers beside it."""


def whole_numbers(context: click.Context, option: click.Parameter, words: str) -> list[int]:
    """ "1,16,256" as a list."""
    try:
        numbers = [int(word) for word in words.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 1:
        raise click.BadParameter(f"{words!r} should be whole numbers from 1, as 1,16,256")
    return numbers


@bench.command(short_help="The mixture-of-experts block.")
@click.option("--hidden", type=click.IntRange(1), default=1024, show_default=True, help="H")
@click.option("--intermediate", type=click.IntRange(1), default=2816, show_default=True, help="I")
@click.option("--experts", type=click.IntRange(1), default=8, show_default=True, help="E")
@click.option("--top-k", type=click.IntRange(1), default=2, show_default=True, help="K")
@click.option("--tokens", default="1,16,256", show_default=True, callback=whole_numbers, help="T, a list.")
@click.option("--threads", default="1,2", show_default=True, callback=whole_numbers, help="BLAS threads, a list.")
@click.option("--peer", type=click.Choice(["transformers"]), help="Time this too, in turns with ours.")
def experts(hidden: int, intermediate: int, experts: int, top_k: int, tokens: list[int], threads: list[int],
            peer: str | None) -> None:
    """Time the mixture-of-experts block, gate to summed answers, in one process."""
    from hpcmoe.report.bench import bench_experts
    from hpcmoe.spec import Moe
    if top_k > experts:
        raise JobError(f"--top-k {top_k} is more than --experts {experts}")
    bench_experts(Moe(experts, top_k, intermediate), hidden, tokens, threads, peer)


@bench.command(short_help="The exchange between ranks.")
@click.option("--rows", default="1,4,16,64,256,1024", show_default=True, callback=whole_numbers,
              help="Rows from one rank to another, a list.")
@click.option("--hidden", type=click.IntRange(1), default=1024, show_default=True, help="H")
@click.option("--dtype", type=click.Choice(["bfloat16", "float32"]), default="bfloat16", show_default=True,
              help="Of the rows.")
@click.option("--device", type=click.Choice(["cpu", "gpu"]), default="cpu", show_default=True,
              help="In whose memory the rows lie.")
@click.option("-o", "--output", type=FILE, help="Keep the table, as HDF5.")
def exchange(rows: list[int], hidden: int, dtype: str, device: str, output: Path | None) -> None:
    """Time one direction of the exchange between all ranks, as in mpiexec -n 4 hpcmoe bench exchange, by message
    size and mode, with the MPI library's own call on the same rows beside it."""
    from hpcmoe.report.bench_exchange import bench_exchange
    sys.exit(bench_exchange(rows, hidden, dtype, device, output))


@bench.command(short_help="Latency and rate between ranks.")
@click.option("--ranks-per-node", type=click.IntRange(0), default=0,
              help="So many neighbouring ranks are one node; by default those that share memory.")
@click.option("--device", type=click.Choice(["cpu", "gpu"]), default="cpu", show_default=True,
              help="In whose memory messages lie.")
@click.option("-o", "--output", type=FILE, help="Keep what was measured, as HDF5.")
def topology(ranks_per_node: int, device: str, output: Path | None) -> None:
    """Measure latency and rate between ranks, as in mpiexec -n 16 hpcmoe bench topology -o topology.h5: inside nodes
    between all, between nodes with all ranks of a node at work, as in an exchange."""
    from hpcmoe.report.bench_topology import bench_topology
    sys.exit(bench_topology(ranks_per_node, device, output))


@bench.command(short_help="What this machine does, for hpcmoe predict.")
@click.option("--device", type=click.Choice(["cpu", "gpu"]), default="cpu", show_default=True, help="What computes.")
@click.option("-o", "--output", type=FILE, help="The hardware file to write, a TOML file.")
def machine(device: str, output: Path | None) -> None:
    """Time steps of small models, as in mpiexec -n 4 hpcmoe bench machine -o this-machine.toml, and fit to them what
    hpcmoe predict --hardware this-machine.toml takes of a machine."""
    from hpcmoe.report.bench_machine import bench_machine
    sys.exit(bench_machine(device, output))


@bench.command(short_help="How speed grows with the ranks.")
@click.argument("outputs", type=FILE, nargs=-1, required=True)
@click.option("--plot", type=FILE, help="Draw it, too: a .png, .pdf or .svg. Needs matplotlib.")
def scaling(outputs: tuple[Path, ...], plot: Path | None) -> None:
    """Compare finished runs of one job on different numbers of ranks: OUTPUTS are their results.

    Runs with the same prompts show strong scaling, runs of shards with as many prompts for each rank weak scaling.
    jobs/scaling.sbatch makes both.
    """
    from hpcmoe.report.scaling import bench_scaling
    bench_scaling(outputs, plot)
