"""The page and the plot of `bench scaling`: how the speed of a job grows with its ranks."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hpcmoe import paths, shard
from hpcmoe.errors import JobError
from hpcmoe.files import h5, place, results, vet
from hpcmoe.report import style, text

KINDS = ("strong", "weak")
"""The same prompts on more ranks; or as many more prompts."""
NOTES = {"strong": "the same prompts on all", "weak": "prompts in proportion to the ranks"}
FORMATS = (".png", ".pdf", ".svg")
COLUMNS = (">hosts", ">ranks", ">prompts", ">tokens", ">time", ">tokens/s", ">speedup", ">efficiency",
           ">exchange exposed")


@dataclass(frozen=True)
class Run:
    """A finished run of the job, or of a shard of it."""

    path: Path
    job: str
    """identity of the whole job"""
    hosts: int
    ranks: int
    prompts: int
    tokens: int
    """new ones, or scored"""
    seconds: float
    """of all steps; loading and writing are not in it"""
    exposed: float
    """seconds of them, mean over the ranks, in which a rank waited for rows and computed nothing"""

    @property
    def rate(self) -> float:
        """Tokens/s."""
        return self.tokens / max(self.seconds, 1e-9)


def bench_scaling(sources: Sequence[Path], plot: Path | None) -> None:
    """Prints the tables, and draws them where `plot` is given. Raises `JobError`, `InputError`."""
    if plot:
        paths.check_output(plot, *sources)
        if plot.suffix.lower() not in FORMATS:
            raise JobError(f"--plot {plot}: should end in {', '.join(FORMATS)}")
    found = series([read(path) for path in sources])
    out = text.console()
    for kind, runs in found.items():
        out.print(f"{kind.capitalize()} scaling, {NOTES[kind]}; seconds are those of all steps, without loading")
        grid = text.table(*COLUMNS)
        for row in rows(runs):
            grid.add_row(*row)
        out.print(grid)
        out.print()
    if plot and find_spec("matplotlib"):
        draw(found, plot)
        out.print(f"plot: {plot}")
    elif plot:
        out.print("matplotlib is not installed, so there is no plot: pip install 'hpcmoe[plot]', and give the same "
                  "command again")


def rows(runs: Sequence[Run]) -> list[tuple[str, ...]]:
    """A row of `COLUMNS` for each run; the first one is what the others are compared with."""
    return [(str(run.hosts), str(run.ranks), str(run.prompts), f"{run.tokens:,}", text.seconds(run.seconds),
             f"{run.rate:.1f}", f"{run.rate / max(runs[0].rate, 1e-9):.2f}", f"{100 * efficiency(run, runs[0]):.0f} %",
             f"{100 * run.exposed / max(run.seconds, 1e-9):.0f} %") for run in runs]


def read(path: Path) -> Run:
    """What a results file says of its run. Raises `InputError`."""
    vet.check(path, "results")
    with h5.reading(path, "results") as file:
        steps = results.steps(file, path)
        job, _ = shard.split(h5.attribute(file, "identity", path, str))
        hosts, prompts = h5.strings(file, "host", path), h5.take(file, "prompt", path)
        return Run(path, job, len(set(hosts)), h5.attribute(file, "ranks", path, int), len(prompts),
                   int(steps.chosen.sum()), steps.seconds, float(steps.moved.exposed))


def series(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """The runs of each kind of `KINDS`, by ranks; the largest is in both.

    Raises `JobError` where runs are of different jobs, or one is of neither kind.
    """
    other = next((run for run in runs if run.job != runs[0].job), None)
    if other:
        raise JobError(f"{other.path} belongs to another job than {runs[0].path}: give runs of one job")
    ordered = sorted(runs, key=lambda run: (run.prompts, run.ranks))
    top = ordered[-1]
    found = {"strong": [run for run in ordered if run.prompts == top.prompts],
             "weak": [run for run in ordered if abs(run.prompts - top.prompts * run.ranks / top.ranks) < 1]}
    neither = [run for run in ordered if run not in found["strong"] + found["weak"]]
    if neither:
        odd = neither[0]
        raise JobError(f"{odd.path} has {odd.prompts} prompts on {odd.ranks} ranks: neither as many as {top.path}, "
                       f"{top.prompts}, nor as many for each rank")
    return {kind: found[kind] for kind in KINDS if len(found[kind]) > 1 or kind == KINDS[0]}


def efficiency(run: Run, base: Run) -> float:
    """Tokens/s of a rank over those of a rank of `base`; 1 is as good as it gets."""
    return run.rate / run.ranks / max(base.rate / base.ranks, 1e-9)


def draw(found: dict[str, list[Run]], path: Path) -> None:
    """Tokens/s and efficiency by ranks. Raises `JobError` where the file cannot be written."""
    from matplotlib.figure import Figure  # without pyplot, which would look for a screen
    figure = Figure(figsize=(9, 4), layout="constrained")
    curves(found, *figure.subplots(1, 2))
    with place.writing(path, "wb") as file:
        figure.savefig(file, format=path.suffix[1:].lower(), dpi=150)


def curves(found: dict[str, list[Run]], speed: Any, share: Any) -> None:
    """Tokens/s and efficiency on axes of their own."""
    from matplotlib.ticker import LogLocator
    for (kind, runs), marker, color in zip(found.items(), "os", (style.BLUE, style.RED)):
        ranks, name = [run.ranks for run in runs], f"{kind} scaling"
        speed.loglog(ranks, [run.rate for run in runs], marker=marker, color=color, label=name)
        speed.loglog(ranks, [runs[0].rate * n / ranks[0] for n in ranks], "--", color=color, alpha=0.5)
        share.semilogx(ranks, [100 * efficiency(run, runs[0]) for run in runs], marker=marker, color=color, label=name)
    every = sorted({run.ranks for runs in found.values() for run in runs})
    for axes, name in ((speed, "tokens/s (dashed: in proportion)"), (share, "efficiency (%)")):
        axes.set_xticks(every, [str(n) for n in every], minor=False)
        axes.minorticks_off()
        axes.set_xlabel("ranks")
        axes.set_ylabel(name)
        axes.grid(alpha=0.3)
        if len(found) > 1:
            axes.legend()
    speed.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    speed.yaxis.set_major_formatter("{x:,.10g}")
    share.set_ylim(0, 105 * max(efficiency(run, runs[0]) for runs in found.values() for run in runs))
