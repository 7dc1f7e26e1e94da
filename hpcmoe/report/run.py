"""What `run` prints: a line before, a summary after."""

import sys
from pathlib import Path

import numpy as np

from hpcmoe import config, launch, launcher
from hpcmoe.errors import CHECKPOINTED
from hpcmoe.files import bias, first, h5, results
from hpcmoe.notice import Notice
from hpcmoe.report import text
from hpcmoe.report.show import print_bias, print_first, print_load, print_traffic, speed_line, was_scored


def run(path: Path, overrides: tuple[str, ...], overwrite: bool, traced: bool) -> int:
    """Runs a job on all ranks; returns the exit code. Collective."""
    notice = Notice()
    launcher.end_with_launcher()
    with notice.listening():  # before MPI starts: whoever is told to end while the job begins must not die of it
        world = launch.start(config.device(path, overrides))
        return launch.guarded(world, lambda: _run(world, path, overrides, overwrite, traced, notice))


def _run(world: launch.World, path: Path, overrides: tuple[str, ...], overwrite: bool, traced: bool,
         notice: Notice) -> int:
    launch.check_gpus(world)
    job = launch.on_root(world, lambda: config.load(path, overrides))
    world = launch.with_nodes(world, job.parallel.ranks_per_node)
    if world.rank == 0:
        print(roll(world), file=sys.stderr, flush=True)
    from hpcmoe.engine import job as life
    end, world = life.run(world, job, overwrite, traced, notice)
    if end is life.End.CHECKPOINTED:
        return CHECKPOINTED
    if world.rank == 0:
        output, done = Path(job.output), end is life.End.DONE
        print(summary(output) if done else f"{output} is finished already; --overwrite runs the job again")
    return 0


def roll(world: launch.World) -> str:
    """Who takes part: ranks, hosts and processes, for the log that somebody reads when a rank is lost."""
    hosts = sorted(set(world.hosts), key=world.hosts.index)
    lines = [f"hpcmoe: {text.plural(world.size, 'rank')} on {text.plural(len(hosts), 'host')}, "
             f"{text.plural(world.threads, 'BLAS thread')} each, {world.library}"]
    on_gpus = world.memory == "device"
    for host in hosts:
        there = [rank for rank in range(world.size) if world.hosts[rank] == host]
        names = [f"{rank} ({world.pids[rank]}" + (f", GPU {world.gpus[rank].address})" if on_gpus else ")")
                 for rank in there]
        lines.append(f"hpcmoe: {host}: ranks (processes) {', '.join(names)}")
        gpus = {world.gpus[rank].address for rank in there} if on_gpus else there
        if len(gpus) < len(there):
            lines.append(f"hpcmoe: {host}: {len(there)} ranks share {text.plural(len(gpus), 'GPU')}, as one does in "
                         "development; under the MPS daemon (nvidia-cuda-mps-control -d) they need not take turns")
    return "\n".join(lines)


def summary(output: Path) -> str:
    """Where the results are, how fast they came, and how the experts were loaded."""
    with h5.reading(output, "results") as file:
        steps = results.steps(file, output)
        load = h5.take(file, "load", output)
        prompts = len(file["prompt"])
        waited = first.take(file, output, prompts)
        biased = bias.take(file, len(load), output)
        slots, scored = int(file.attrs["experts_per_rank"]), was_scored(file, output)
    out = text.console()
    with out.capture() as page:
        out.print(f"{output}: {prompts} prompts, {speed_line(steps, scored)}")
        print_first(out, waited)
        print_traffic(out, steps)
        if load.size and np.any(load):
            print_load(out, load, slots)
        if biased:
            print_bias(out, biased, load)
    return page.get().rstrip()
