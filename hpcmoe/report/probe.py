"""The page that `probe` prints, and `show` of the file that it wrote."""

import sys
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from hpcmoe import config, launch, paths
from hpcmoe.config import Job
from hpcmoe.engine import inputs
from hpcmoe.engine.memory import plan_sizes
from hpcmoe.engine.seats import group_size, place
from hpcmoe.errors import DeviceError, InputError
from hpcmoe.files import probe
from hpcmoe.files.probe import ENDED, WORKS, WRONG, Probe
from hpcmoe.report import text
from hpcmoe.spec import ModelSpec
from hpcmoe.types import MODES, TRANSPORTS

MOST = 1024
"""Tokens of a timed step on each rank at most."""
WORDS = {WORKS: "works", WRONG: "GIVES WRONG ROWS", ENDED: "ENDED A PROBE", "": "was not tried"}
"""What the page says of each verdict."""


def run(path: Path, overrides: tuple[str, ...], output: Path | None) -> int:
    """Probes on all ranks; returns the exit code. Collective."""
    world = launch.start(config.device(path, overrides))
    return launch.guarded(world, lambda: _run(world, path, overrides, output))


def _run(world: launch.World, path: Path, overrides: tuple[str, ...], output: Path | None) -> None:
    from hpcmoe.bench import cuts  # start MPI
    from hpcmoe.bench import probe as bench
    from hpcmoe.engine import groups, ways
    from hpcmoe.engine.versions import versions
    from hpcmoe.exchange import tune
    launch.check_gpus(world)
    job, model, most, target = launch.on_root(world, lambda: _read(path, overrides, output, world.size))
    world = launch.with_nodes(world, job.parallel.ranks_per_node)
    units = ways.units(model, job)
    group = groups.split(world, job.parallel.data)  # whose steps are timed; those of the first one are told
    known = Probe(group.hosts, world.library, units, model.name, {})

    def save(found: Probe) -> None:
        launch.on_root(world, lambda: probe.write(target, found, versions(world.library)))

    def tell(line: str) -> None:
        if world.rank == 0:
            print(f"hpcmoe: {line}", file=sys.stderr, flush=True)

    findings = bench.launch_findings(world)
    if world.rank == 0:
        for f in findings:
            print(f"{f.what:<14}{f.found}" if f.right else f"{f.what:<14}NOT RIGHT: {f.found}: {f.mend}", flush=True)
    left_out = launch.on_root(world, lambda: ended(target, known))
    verdicts = bench.try_ways(world, units, left_out, tell, lambda found: save(replace(known, verdicts=found)))
    known = replace(known, verdicts=verdicts)
    save(known)
    if WORKS not in verdicts.values():
        raise launch.Agreed(DeviceError.code, "rows did not come whole by any transport: try another MPI library",
                            world.rank == 0)
    if group.size > 1 and model.moe:
        tell("timing modes and schedules")
        way = ways.Way("alltoallv", known.best(), memory=world.memory)
        if known.works(known.best(), "persistent"):
            way = replace(way, mode="auto", speeds=tune.measure(group.comm, world.idle, units, way, rounds=31))
        tried = ways.measure_hops(group, job, model, place(model, group.size, job), way)
        known = replace(known, speeds=way.speeds, cuts=cuts.measure_cuts(group, model, job, way, most), hops=tried.hops,
                        nodes=len(set(group.nodes)))
        save(known)
    if group is not world:
        group.comm.Free()
    if world.rank == 0:
        page(text.console(), known)
        print(f'{target} is written: probe = "{named(target, path)}" in the job makes auto go by it')


def ended(target: Path, now: Probe) -> list[tuple[str, str]]:
    """(transport, mode)s that ended an earlier probe like this one; none where nothing would be left to try."""
    if not target.exists():
        return []
    try:
        before = probe.read(target)
    except InputError as error:
        print(f"hpcmoe: warning: {error}; it is written anew", file=sys.stderr, flush=True)
        return []
    if (before.host, before.library) != (now.host, now.library):
        return []
    found = [way for way, verdict in before.verdicts.items() if verdict == ENDED]
    return [] if {(transport, "alltoallv") for transport in TRANSPORTS} <= set(found) else found


def named(target: Path, job: Path) -> Path:
    """The file as the job is to call it: paths there are relative to the job file."""
    whole, folder = target.resolve(), job.resolve().parent
    return whole.relative_to(folder) if whole.is_relative_to(folder) else whole


def _read(path: Path, overrides: tuple[str, ...], output: Path | None,
          ranks: int) -> tuple[Job, ModelSpec, int, Path]:
    """The job, its model, the most tokens of a step, and where to write."""
    job = config.load(path, overrides)
    found = inputs.read(job)
    ranks = group_size(ranks, job)
    place(found.model.spec, ranks, job)  # raises where that does not fit: here, where one rank tells
    sizes = plan_sizes(found.model.spec, job, found.prompts.lengths, ranks)
    target = output or Path(job.probe or path.with_name("probe.h5"))
    paths.check_output(target, path, Path(job.model), Path(job.prompts))
    return job, found.model.spec, min(sizes.tokens, MOST), target


def page(out: Console, found: Probe) -> None:
    """Prints what works, and how fast."""
    out.print(f"{text.plural(len(found.host), 'rank')} on {text.plural(len(set(found.host)), 'host')}, "
              f"{found.model}, rows of {text.size(2 * found.units)}; {found.library}")
    for transport in TRANSPORTS:
        said = [f"{mode} {WORDS[found.verdicts.get((transport, mode), '')]}" for mode in MODES]
        taken = "; auto takes it" if found.works(transport) and found.best() == transport else ""
        out.print(f"{transport:<14}{', '.join(said)}{taken}")
    if found.speeds:
        grid = text.table(">bytes/peer", ">alltoallv", ">persistent", "auto takes")
        for size, exact, rung in zip(found.speeds.size, found.speeds.alltoallv, found.speeds.persistent):
            taken = "persistent" if found.speeds.persistent_pays(size, size) else "alltoallv"
            grid.add_row(text.size(size), *(f"{t * 1e6:,.0f} µs" for t in (exact, rung)), taken)
        out.print("\nOne direction of the exchange, the same rows between any two ranks")
        out.print(grid)
    if found.cuts:
        grid = text.table(">tokens/rank", ">whole", ">two in turns", "auto")
        for rows, whole, halves in zip(found.cuts.rows.tolist(), found.cuts.whole, found.cuts.halves):
            grid.add_row(str(rows), text.seconds(whole), text.seconds(halves),
                         "cuts in two" if found.cuts.pays(rows) else "leaves whole")
        out.print("\nA step through a few of the model's layers")
        out.print(grid)
    if found.hops:
        grid = text.table(">tokens/rank", ">straight", ">two hops", "auto")
        for rows, flat, hops in zip(found.hops.rows.tolist(), found.hops.flat, found.hops.twohop):
            grid.add_row(str(rows), text.seconds(flat), text.seconds(hops),
                         "two hops" if found.hops.pays(rows) else "straight")
        out.print(f"\nDispatch and return between {found.nodes} nodes, uniform routing")
        out.print(grid)
