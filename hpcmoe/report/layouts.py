"""The page of `check --hardware`: which layouts of a job fit into its GPUs, and how fast each would be."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from hpcmoe.errors import JobError, size
from hpcmoe.predict import demand, machine, predict
from hpcmoe.predict.simulate import Given
from hpcmoe.report import text
from hpcmoe.report.check import parse_size
from hpcmoe.report.predict import read

SHOWN = 12
"""Layouts, the fastest first."""
USUAL = "h100-seed"
"""The hardware for a spec of which no more is said than how much memory a GPU has."""


def show(path: Path, overrides: Iterable[str], ranks: int, hardware: str | None, gpu_memory: str | None) -> None:
    """Prints them, in closed form: no step is simulated. `gpu_memory`, where it is given, counts instead of the
    hardware's, which is `USUAL` where none is asked for: what is wrong is then left to the rest of the page. Raises
    `JobError`, `InputError`."""
    asked, hardware = hardware, hardware or USUAL
    hw, source, out = machine.load(hardware), read(path, overrides, None), text.console()
    if gpu_memory:
        hw = replace(hw, device=replace(hw.device, memory=parse_size(gpu_memory)))
    model, load = source.model, source.on(ranks)
    job = replace(source.job, parallel=replace(source.job.parallel, plan=""))
    use = demand.skewed(model.moe, len(model.moe_layers), 0.0, 0) if model.moe else demand.NONE
    found = predict.ranked(model, hw, ranks, job, load, Given(use, even=True))
    if not found and not asked:
        return
    if not found:
        raise JobError(f"no layout of {model.name} on {text.plural(ranks, 'rank')} fits into {size(hw.device.memory)} "
                       "of a GPU: give more ranks, or GPUs with more memory")
    out.print(f"Layouts of {model.name} on {text.plural(ranks, 'rank')} that fit into {size(hw.device.memory)} of a "
              f"GPU, by estimate for {hw.name}: prompts of {text.plural(load.prompt, 'token')}, {load.new} new ones")
    grid = text.table("", ">experts", ">EP", ">groups", ">heads over", ">sequences", ">tokens/s", ">of a GPU", ">TPOT",
                      ">TTFT", ">memory")
    for place, speed in enumerate(found[:SHOWN]):
        layout = speed.layout
        shards = f"/{layout.shards}" if layout.shards > 1 else ""
        grid.add_row("" if place else "best", f"{layout.slots(model)}{shards}", str(layout.group), str(layout.data),
                     str(layout.team), str(speed.load.sequences), f"{speed.rate * ranks:,.0f}", f"{speed.rate:,.1f}",
                     text.seconds(speed.tpot), text.seconds(speed.ttft), size(speed.memory.total))
    out.print(grid)
    if len(found) > SHOWN:
        out.print(f"and {len(found) - SHOWN} more")
    out.print()
