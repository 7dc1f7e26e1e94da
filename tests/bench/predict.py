"""`make validate-predict`: predicted against measured steps, of shapes that no calibration saw.

For each number of ranks `bench machine` calibrates on its own shapes; then steps of other ones are measured and
predicted. Prints every step, and the median and the worst error of each number of ranks and of all.
"""

import argparse
import json
import os
import subprocess
import sys
from itertools import zip_longest
from pathlib import Path

import numpy as np

from hpcmoe import launch
from hpcmoe.report import text

MEDIAN, WORST = 0.10, 0.25
"""What is aimed at."""


def unseen():
    """Between the shapes of the calibration, and beyond some; never one of them."""
    from hpcmoe.bench.machine import SHAPES, Shape
    shapes = (Shape(256, 1024, 6, 1, 2, 4, 32), Shape(512, 512, 5, 2, 1, 2, 96), Shape(512, 2048, 3, 1, 2, 8, 48),
              Shape(768, 1536, 4, 1, 1, 6, 64), Shape(768, 768, 3, 2, 2, 12, 32), Shape(1024, 512, 4, 1, 2, 8, 16),
              Shape(1024, 1536, 4, 1, 2, 3, 128), Shape(768, 1024, 3, 1, 2, 3, 0, 96),
              Shape(512, 1536, 3, 2, 1, 2, 0, 192), Shape(1280, 1280, 2, 1, 1, 4, 32))
    assert not set(shapes) & set(SHAPES)
    return shapes


def measure(path: Path) -> None:
    """On all ranks: calibrates, measures, predicts; rank 0 writes what came of it."""
    from hpcmoe.bench import machine
    world = launch.start("cpu")

    def work() -> None:
        wanted = [shape for pair in zip_longest(machine.SHAPES, unseen()) for shape in pair if shape]  # in turns, since
        found = {shape: machine.measure(world, shape) for shape in wanted}  # a busy machine slows all alike then
        seen = [found[shape] for shape in machine.SHAPES]
        hw = machine.fit(seen, world.size, max(map(world.nodes.count, world.nodes)), "this-machine", 4)
        rows = [(shape.hidden, shape.intermediate, shape.batch.rows, found[shape].seconds,
                 machine.simulated(found[shape], hw, world.size).seconds) for shape in unseen()]
        if world.rank == 0:
            path.write_text(json.dumps(rows))
    sys.exit(launch.guarded(world, work))


def page(found: dict[int, list]) -> bool:
    """Prints all; whether what is aimed at is met."""
    out = text.console()
    grid = text.table(">ranks", ">H", ">I", ">tokens", ">measured", ">predicted", ">error")
    errors: dict[int, list[float]] = {}
    for ranks, rows in found.items():
        for hidden, width, tokens, seconds, told in rows:
            errors.setdefault(ranks, []).append(told / seconds - 1)
            grid.add_row(str(ranks), str(hidden), str(width), str(tokens), text.seconds(seconds), text.seconds(told),
                         f"{100 * errors[ranks][-1]:+.0f} %")
    out.print(grid)
    every = np.abs(np.concatenate(list(errors.values())))
    for name, values in [*((text.plural(n, "rank"), np.abs(some)) for n, some in errors.items()), ("all", every)]:
        out.print(f"{name}: median error {100 * np.median(values):.0f} %, worst {100 * np.max(values):.0f} %")
    met = bool(np.median(every) <= MEDIAN and every.max() <= WORST)
    out.print(f"aimed at: median {100 * MEDIAN:.0f} %, worst {100 * WORST:.0f} %: {'met' if met else 'MISSED'}; load "
              f"average of the machine {os.getloadavg()[0]:.1f} on {len(os.sched_getaffinity(0))} cores")
    return met


def main() -> None:
    cores = len(os.sched_getaffinity(0))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", default=",".join(str(2**n) for n in range(5) if 2**n <= cores))
    parser.add_argument("--measure", type=Path)
    asked = parser.parse_args()
    if asked.measure:
        measure(asked.measure)
    found, path = {}, Path("build") / "validate-predict.json"
    path.parent.mkdir(exist_ok=True)
    for ranks in map(int, asked.ranks.split(",")):
        command = [str(Path(sys.executable).with_name("mpiexec")), "-n", str(ranks), sys.executable, __file__]
        subprocess.run([*command, "--measure", str(path)], check=True, timeout=1800,
                       env={**os.environ, "OMP_NUM_THREADS": "1"})
        found[ranks] = json.loads(path.read_text())
    sys.exit(not page(found))


if __name__ == "__main__":
    main()
