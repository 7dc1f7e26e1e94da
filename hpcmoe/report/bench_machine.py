"""The page that `bench machine` prints, and the file that it writes."""

from pathlib import Path

import tomli_w

from hpcmoe import launch, paths
from hpcmoe.files import place
from hpcmoe.report import text

ALONE = "One rank exchanges nothing: for links between ranks, measure with as many as a node has."


def bench_machine(device: str, output: Path | None) -> int:
    """Measures on all ranks; returns the exit code. Collective."""
    world = launch.start(device)
    return launch.guarded(world, lambda: run(world, output))


def run(world: launch.World, output: Path | None) -> None:
    """Measures, prints, and writes `output` where it is given. Collective. Raises `Agreed`."""
    from hpcmoe.bench import fit, solve  # starts MPI
    launch.check_gpus(world)
    if output:
        launch.on_root(world, lambda: paths.check_output(output))
    hw, found = fit.calibrated(world, "this-machine")
    if world.rank == 0:
        out = text.console()
        out.print(f"Steps of {text.plural(world.size, 'rank')}, measured, and as hpcmoe predict makes them of the "
                  "figures below")
        grid = text.table(">H", ">I", ">tokens", ">measured", ">predicted", ">apart")
        for one in found:
            told = solve.simulated(one, hw, world.size).seconds
            grid.add_row(str(one.shape.hidden), str(one.shape.intermediate), str(one.shape.batch.rows),
                         text.seconds(one.seconds), text.seconds(told), f"{100 * (told / one.seconds - 1):+.0f} %")
        out.print(grid)
        if world.size == 1:
            out.print(ALONE)
        if not output:
            out.print(tomli_w.dumps(fit.rounded(hw)))
    if output:
        launch.on_root(world, lambda: write(output, fit.rounded(hw), world.size))


def write(path: Path, table: dict, ranks: int) -> None:
    """A hardware file. Raises `JobError`."""
    note = (f"# What {text.plural(ranks, 'rank')} of this machine do, as hpcmoe bench machine fitted it to measured "
            "steps: bytes/s, FLOP/s,\n# seconds, bytes.\n" + ("# " + ALONE + "\n" if ranks == 1 else ""))
    with place.writing(path, "wb") as file:
        file.write((note + tomli_w.dumps(table)).encode())
