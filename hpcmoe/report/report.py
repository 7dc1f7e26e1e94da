"""The verb `report`: what finished runs came to, as tables on stdout, and as a page with pictures."""

import re
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from hpcmoe import paths, shard
from hpcmoe.errors import JobError
from hpcmoe.files import place
from hpcmoe.predict import machine
from hpcmoe.predict.machine import Hardware
from hpcmoe.report import blocks, differ, html, measured, scaling, style, text
from hpcmoe.report.beside import beside
from hpcmoe.report.blocks import Block, Grid, Picture, Section
from hpcmoe.report.expert_load import heat, traffic
from hpcmoe.report.foretold import foretold
from hpcmoe.report.latency import first_token, latency
from hpcmoe.report.measured import Measured
from hpcmoe.report.over_time import imbalance, throughput
from hpcmoe.report.overview import summary, titles
from hpcmoe.report.roofline import roofline
from hpcmoe.report.shares import exchange, links, stages

MOST = 32
"""Files of a report: its page has some 70 kB of pictures for each figure of each."""
FIGURES = (throughput, latency, first_token, stages, exchange, imbalance, heat, traffic, links, foretold)
"""What is told of each run from its file alone."""


def report(sources: Sequence[Path], output: Path | None, only_text: bool, hardware: str | None) -> None:
    """Prints the tables, and writes the page and its pictures unless `only_text`; `hardware` is as for `machine.load`.
    Raises `JobError`, `InputError`."""
    _check(sources)
    target = output or sources[0].with_suffix(".report.html")
    if not only_text:
        if target.suffix.lower() != ".html":
            raise JobError(f"output {target}: should end in .html")
        paths.check_output(target, *sources)
        paths.check_folder(_folder(target).absolute(), f"pictures of {target}")
    hw = None if hardware is None else machine.load(hardware)
    runs = [measured.read(path) for path in sources]
    found = sections(runs, hw)
    out = text.console()
    blocks.show(out, found)
    if only_text:
        return
    if not find_spec("matplotlib"):
        out.print("\nmatplotlib is not installed, so there is no page: pip install 'hpcmoe[plot]', and give the same "
                  "command again")
        return
    pictures = [block.picture for section in found for block in section.blocks if block.picture]
    drawn = {picture.name: style.png(picture) for picture in pictures}
    write(target, runs, found, drawn)
    out.print(f"\npage: {target}, pictures: {_folder(target)}/")


def _check(sources: Sequence[Path]) -> None:
    if len(sources) > MOST:
        raise JobError(f"{len(sources)} files are too many for a page: give up to {MOST}")
    for n, path in enumerate(sources):
        twice = next((other for other in sources[:n] if paths.same(path, other)), None)
        if twice:
            raise JobError(f"{path} is given twice: give each file once" if path == twice else
                           f"{path} and {twice} are the same file: give each file once")


def _folder(page: Path) -> Path:
    """Where the pictures of a page lie, beside it: out.report.html -> out.report."""
    return page.with_suffix("")


def sections(runs: Sequence[Measured], hw: Hardware | None) -> tuple[Section, ...]:
    """All that is told of them."""
    found = [Section("Overview", (summary(runs),))]
    if len(runs) == 2:
        found.append(differ.compare(*runs))
    if len(runs) > 1:
        found.append(Section("Scaling", _scaling(runs)))
    for number, (run, title) in enumerate(zip(runs, titles(runs)), 1):
        told = (*(figure(run) for figure in FIGURES), *beside(run, hw), roofline(run, hw))
        if len(runs) > 1:
            title = f"{title}: {run.path}"
            told = tuple(_numbered(block, number) for block in told)
        found.append(Section(title[:1].upper() + title[1:], told))
    return tuple(found)


def _numbered(block: Block, number: int) -> Block:
    """The block of one run among several; its picture's file has the run's number in front."""
    picture = block.picture
    return replace(block, picture=replace(picture, name=f"run-{number}-{picture.name}")) if picture else block


def _scaling(runs: Sequence[Measured]) -> tuple[Block, ...]:
    """Speed by ranks, where the runs are of one job."""
    title = "Speed by ranks"
    try:
        found = scaling.series([scaling.Run(run.path, shard.split(run.identity)[0], len(set(run.hosts)), run.ranks,
                                            len(run.lengths), run.new, run.seconds,
                                            float(run.steps.moved.exposed)) for run in runs])
    except JobError as error:
        return (Block(title, f"left out: {re.sub(': give .*', '', str(error))}."),)
    if len({run.ranks for run in runs}) == 1:
        return (Block(title, f"left out: all had {text.plural(runs[0].ranks, 'rank')}."),)

    names = {run.path: name for run, name in zip(runs, titles(runs))}

    def curves(kind: str) -> Block:
        first, last = found[kind][0], found[kind][-1]
        rows = tuple((names[run.path], *row) for run, row in zip(found[kind], scaling.rows(found[kind])))
        says = (f"{scaling.NOTES[kind]}: from {first.ranks} to {text.plural(last.ranks, 'rank')} "
                f"tokens/s grow from {first.rate:,.1f} to {last.rate:,.1f}, an efficiency of "
                f"{100 * scaling.efficiency(last, first):.0f} %. Seconds are those of all steps, without loading.")

        def draw(figure):
            scaling.curves({kind: found[kind]}, *figure.subplots(1, 2))
        return Block(f"{title}, {kind}", says, Grid(("", *scaling.COLUMNS), rows),
                     Picture(f"scaling-{kind}", f"Lines of tokens per second and of efficiency by ranks: {says}", draw))
    return tuple(curves(kind) for kind in found if len({run.ranks for run in found[kind]}) > 1)


def write(target: Path, runs: Sequence[Measured], found: Sequence[Section], drawn: dict[str, bytes]) -> None:
    """The pictures, and then the page. Raises `JobError` where one cannot be written."""
    for name, data in drawn.items():
        with place.writing(_folder(target) / f"{name}.png", "wb") as file:
            file.write(data)
    names = ", ".join(run.path.name for run in runs[:3]) + (f" and {len(runs) - 3} more" if len(runs) > 3 else "")
    lead = f"{text.plural(len(runs), 'run')} of hpcmoe. Seconds are those of steps, without loading and writing."
    with place.writing(target) as file:
        file.write(html.page(f"Report of {names}", lead, found, drawn))
