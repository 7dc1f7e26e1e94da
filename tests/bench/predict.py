"""`make validate-predict`: predicted against measured steps, of shapes that no calibration saw.

For each number of ranks on this machine, and for two hosts with a slow link between them (`twohosts`, where root may),
`bench machine` calibrates on its own shapes; other ones, drawn by a seed, are measured in the same turns and predicted.
Between the hosts the same is done with a slower link, too, of which the calibration is told its rate only. Prints every
step, and the median and the worst error of each place and of all.
"""

import argparse
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import twohosts

sys.path.append(str(Path(__file__).parent.parent))
from onegpu import missing, shared_gpu

from hpcmoe import launch
from hpcmoe.report import text

MEDIAN, WORST = 0.10, 0.25
"""What is aimed at."""
SHAPES, TOKENS = 14, {"host": 1 << 15, "device": 1 << 13}
"""Drawn at each place; and tokens at most of all sequences of one: the models of all shapes are there at once."""
LINK, SLOWER = 250e6, 80e6
"""bytes/s between two hosts."""
FOUND = Path("build") / "validate-predict.json"


def unseen(seed: int, memory: str):
    """Shapes between those of the calibration and a little beyond: two thirds decode, a quarter of all in turns."""
    from hpcmoe.bench.machine import SHAPES as SEEN
    from hpcmoe.bench.machine import Shape
    chance, found = np.random.default_rng(seed), list[Shape]()

    def draw(low: int, high: int, step: int = 1) -> int:
        return int(chance.integers(low // step, high // step, endpoint=True)) * step
    host = memory == "host"
    for number in range(SHAPES):
        width = (draw(512, 1536, 128), draw(512, 2304, 128)) if host else (draw(2048, 4608, 512), draw(512, 2048, 256))
        size = draw(*((1, 2) if host else (2, 3))), draw(1, 2), draw(1, 2)
        if number % 3:
            many, long = (draw(1, 24), draw(16, 240)) if host else (draw(1, 192), draw(64, 1024))
            step = many, min(long, TOKENS[memory] // many)
        else:
            step = (draw(1, 3), 0, draw(32, 192) if host else draw(128, 768))
        shape = Shape(*width, *size, *step)
        found.append(replace(shape, micro_batches=2 if number % 4 == 3 and shape.sequences > 1 else 1))
    return tuple(shape for shape in found if shape not in SEEN[memory])


def rows(found, hw, ranks: int) -> list[tuple]:
    """What is told of each step."""
    from hpcmoe.bench import solve
    return [(one.shape.hidden, one.shape.intermediate, one.shape.batch.rows, one.shape.micro_batches, one.seconds,
             solve.simulated(one, hw, ranks).seconds) for one in found]


def here(seed: int, device: str) -> None:
    """On all ranks: calibrates, measures, predicts; rank 0 writes what came of it."""
    world = launch.start(device)
    from hpcmoe.bench import fit

    def work() -> None:
        shapes = unseen(seed, world.memory)
        hw, found = fit.calibrated(world, "this-machine", shapes)
        if world.rank == 0:
            where = text.plural(world.size, "rank") + (" of a GPU" if device == "gpu" else "")
            FOUND.write_text(json.dumps({where: rows(found[-len(shapes):], hw, world.size)}))
    sys.exit(launch.guarded(world, work))


def between(world: launch.World) -> None:
    """The same on two hosts."""
    from hpcmoe.bench import fit, machine
    shapes = unseen(int(os.environ["SEED"]), world.memory)
    twohosts.shape(LINK)
    hw, found = fit.calibrated(world, "two hosts", shapes)
    twohosts.shape(SLOWER)
    pace = 1 / hw.links.far_rate + 1 / SLOWER - 1 / LINK  # what a byte takes beside the wire stays as it is
    slower = replace(hw, links=replace(hw.links, far_rate=1 / pace))
    later = machine.measure(world, shapes)
    if world.rank == 0:
        FOUND.write_text(json.dumps({f"two hosts, {LINK / 1e6:.0f} MB/s": rows(found[-len(shapes):], hw, 2),
                                     f"two hosts, {SLOWER / 1e6:.0f} MB/s": rows(later, slower, 2)}))


def page(found: dict[str, list]) -> bool:
    """Prints all; whether what is aimed at is met."""
    out = text.console()
    grid = text.table("where", ">H", ">I", ">tokens", "schedule", ">measured", ">predicted", ">error")
    errors: dict[str, list[float]] = {}
    for where, steps in found.items():
        for hidden, width, tokens, parts, seconds, told in steps:
            errors.setdefault(where, []).append(told / seconds - 1)
            grid.add_row(where, str(hidden), str(width), str(tokens), "serial" if parts == 1 else "overlapped",
                         text.seconds(seconds), text.seconds(told), f"{100 * errors[where][-1]:+.0f} %")
    out.print(grid)
    every = np.abs(np.concatenate(list(errors.values())))
    for name, values in [*((where, np.abs(some)) for where, some in errors.items()), ("all", every)]:
        out.print(f"{name}: median error {100 * np.median(values):.0f} %, worst {100 * np.max(values):.0f} %")
    met = bool(np.median(every) <= MEDIAN and every.max() <= WORST)
    out.print(f"aimed at: median {100 * MEDIAN:.0f} %, worst {100 * WORST:.0f} %: {'met' if met else 'MISSED'}; load "
              f"average of the machine {os.getloadavg()[0]:.1f} on {len(os.sched_getaffinity(0))} cores")
    return met


def on_ranks(ranks: str, asked: argparse.Namespace) -> dict[str, list]:
    """What `here` found on each number of ranks."""
    found: dict[str, list] = {}
    for number in ranks.split(","):
        command = [str(Path(sys.executable).with_name("mpiexec")), "-n", number, sys.executable, __file__]
        subprocess.run([*command, "--measure", "--device", asked.device, "--seed", str(asked.seed)], check=True,
                       timeout=1800, env={**os.environ, "OMP_NUM_THREADS": "1"})
        found |= json.loads(FOUND.read_text())
    return found


def on_hosts(seed: int) -> dict[str, list]:
    """What `between` found; nothing where no second host can be made."""
    if why := twohosts.check():
        print(f"two hosts are left out: {why}", file=sys.stderr)
        return {}
    os.environ["SEED"] = str(seed)
    if code := twohosts.main(__file__, between, 1):
        sys.exit(code)
    return json.loads(FOUND.read_text())


def main() -> None:
    if sys.argv[1:] == ["rank"]:
        sys.exit(twohosts.main(__file__, between, 1))
    cores = len(os.sched_getaffinity(0))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", help="1,2,4 on a GPU, else up to 16 and one on each core")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.measure:
        here(asked.seed, asked.device)
    FOUND.parent.mkdir(exist_ok=True)
    if asked.device == "gpu":
        if why := missing():
            sys.exit(why)
        with shared_gpu():
            found = on_ranks(asked.ranks or "1,2,4", asked)
    else:
        found = on_ranks(asked.ranks or ",".join(str(2**n) for n in range(5) if 2**n <= cores), asked)
        found |= on_hosts(asked.seed)
    sys.exit(not page(found))


if __name__ == "__main__":
    main()
