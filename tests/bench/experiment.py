"""The seed's experiment, predicted: one expert per GPU and layer, against E / 8 of them on each of 8 GPUs.

Writes experiment.csv and experiment.png into a folder, and prints the table. Groups of GPUs are data replicas of each
other, so what a GPU gives does not depend on their number; all is simulated, nothing measured.
"""

import argparse
import atexit
import csv
import sys
import tempfile
import textwrap
import time
from dataclasses import asdict, dataclass, replace
from functools import cache
from itertools import product
from pathlib import Path

import planned

from hpcmoe import spec_table
from hpcmoe.config import Exchange, Parallel, Schedule
from hpcmoe.predict import demand, machine, predict
from hpcmoe.predict.layout import Layout, Load, bare
from hpcmoe.predict.simulate import Given
from hpcmoe.report import text
from hpcmoe.types import STAGES

INPUTS = Path(__file__).parents[2] / "inputs"
SPECS = {16: "seed61.toml", 64: "seed61-e64.toml", 256: "seed61-e256.toml"}
USUAL = {16: 2, 64: 4, 256: 8}
"""K of each E, as the inputs have it."""
TOP_K = (1, 2, 4, 8)
BATCHES = (4, 8, 16, 32, 64)
BATCH = 8
"""Sequences of a GPU where they are not what is varied: as the proposed layout has room for."""
TEAM, GPUS, PROMPT, NEW, STEPS = 4, 8, 512, 64, 1
WAYS = {"serial": (Schedule("serial", 1), "alltoallv"), "overlap": (Schedule("overlapped", 2), "alltoallv"),
        "two hops": (Schedule("serial", 1), "twohop"), "both": (Schedule("overlapped", 2), "twohop")}
RANKS = (16, 64, 256, 1024, 4096)
ZIPF = 0.5
PLANNED = {"5/4, planned": (5, 4), "3/2, planned": (3, 2), "E/8, planned": None}
"""Layouts by plans, for `ZIPF`: E GPUs and a quarter or half as many more, which hold replicas; or 8 GPUs."""


@dataclass(frozen=True)
class Row:
    """One simulation."""

    E: int
    K: int
    layout: str
    group: int
    experts: int
    """of a GPU and layer"""
    sequences: int
    way: str
    zipf: float
    tpot: float
    ttft: float
    rate: float
    """tokens/s of a GPU"""
    exposed: float
    imbalance: float
    bytes_same_node: float
    bytes_other_nodes: float
    memory: float
    fits: bool


def one(hw, E: int, K: int, layout: str, sequences: int, way: str, zipf: float = 0.0) -> Row:
    spec = spec_table.load(INPUTS / SPECS[E])
    spec = replace(spec, moe=replace(spec.moe, top_k=K))
    group = gpus(E, layout)
    turns, hops = WAYS[way]
    given = Given(demand.skewed(spec.moe, len(spec.moe_layers), zipf, 0))
    plan = made(hw, E, K, group, sequences, given) if layout in PLANNED else ""
    job = bare(Parallel(plan=plan, attention_tensor=TEAM), Exchange(hops), turns)
    found = predict.measure(spec, hw, Layout(group, job), Load(sequences, PROMPT, NEW, 1024), given, STEPS)
    near, far = found.bytes[1:].tolist()
    return Row(E, K, layout, group, -(-E // group), sequences, way, zipf, found.tpot, found.ttft, found.rate,
               found.exposed / found.tpot, found.imbalance, near, far, found.memory.total, found.fits)


def gpus(E: int, layout: str) -> int:
    """Of a group."""
    more = (1, 1) if layout == "proposed" else PLANNED.get(layout)
    return E * more[0] // more[1] if more else GPUS


@cache
def folder() -> Path:
    """For plans, until the end."""
    kept = tempfile.TemporaryDirectory()
    atexit.register(kept.cleanup)
    return Path(kept.name)


def made(hw, E: int, K: int, group: int, sequences: int, given: Given) -> str:
    """A plan's path. What a row costs is what it does in a run without a plan, as `hpcmoe plan` takes it."""
    path = folder() / f"{E}-{K}-{group}-{sequences}.h5"
    if not path.exists():
        spec = spec_table.load(INPUTS / SPECS[E])
        spec = replace(spec, moe=replace(spec.moe, top_k=K))
        job = bare(Parallel(attention_tensor=TEAM), Exchange("alltoallv"), WAYS["serial"][0])
        found = predict.measure(spec, hw, Layout(group, job), Load(sequences, PROMPT, NEW, 1024), given, STEPS)
        spent = found.steps[-1].stages[STAGES.index("expert")] / len(spec.moe_layers)
        planned.write(path, spec, hw, given.demand, group, sequences, spent / (sequences * K))
    return str(path)


def grid() -> list[tuple]:
    """(E, K, layout, sequences, way, zipf) of all simulations, each once."""
    both = ("proposed", "conventional")
    asked = [(E, K, layout, BATCH, way, 0.0) for E in SPECS for K in TOP_K for layout in both
             for way in ("serial", "overlap")]
    asked += [(E, USUAL[E], layout, batch, way, 0.0) for E in SPECS for layout in both for batch in BATCHES
              for way in ("serial", "overlap")]
    asked += [(E, USUAL[E], layout, BATCH, way, zipf) for E in SPECS for layout in both for way in WAYS
              for zipf in (0.0, ZIPF)]
    asked += [(E, USUAL[E], layout, BATCH, way, ZIPF) for E in SPECS for layout in PLANNED for way in WAYS]
    return list(dict.fromkeys(asked))


def page(rows: list[Row], hw) -> None:
    out = text.console()
    out.print(assumptions(hw))
    table = text.table(">E", ">K", "layout", ">EP", ">experts", ">batch", "way", ">zipf", ">TPOT", ">tokens/s",
                       ">exposed", ">uneven", ">memory")
    for row in rows:
        table.add_row(str(row.E), str(row.K), row.layout, str(row.group), str(row.experts), str(row.sequences),
                      row.way, f"{row.zipf:g}", text.seconds(row.tpot), f"{row.rate:.1f}", f"{100 * row.exposed:.0f} %",
                      f"{row.imbalance:.2f}", text.size(row.memory) + ("" if row.fits else " (!)"))
    out.print(table)
    out.print("experts, tokens/s: of a GPU; exposed: part of a step; uneven: a layer's most rows over the mean, - 1\n"
              "(!): does not fit into the GPU's memory, and is simulated as if it did")
    every = [*product(SPECS, (0.0, ZIPF), [("proposed", "conventional")]),
             *((E, ZIPF, (layout, "E/8, planned")) for E in SPECS for layout in PLANNED if PLANNED[layout])]
    for E, zipf, pair in every:
        mine, other = (max((row for row in rows if (row.E, row.K, row.sequences, row.zipf, row.layout)
                            == (E, USUAL[E], BATCH, zipf, layout)), key=lambda row: row.rate) for layout in pair)
        word = "wins over" if mine.rate > other.rate else "LOSES to"
        kind = ("without plans" if mine.layout == "proposed" else
                f"both planned, replicas on {mine.group - E} GPUs more than experts")
        use = f", experts used by Zipf's law, s = {zipf:g}, {kind}" if zipf else ""
        out.print(f"E {E}, K {USUAL[E]}, {BATCH} sequences a GPU{use}: one expert per GPU and layer {word} "
                  f"{other.experts} on each of {GPUS} GPUs: {mine.rate:.1f} ({mine.way}) against {other.rate:.1f} "
                  f"({other.way}) tokens/s of a GPU{'' if other.fits else ', where the latter does not fit'}")


def assumptions(hw) -> str:
    device, links = hw.device, hw.links
    words = (f"Predicted, not measured. {hw.name}: {device.flops / 1e12:.0f} TFLOP/s x {device.flops_share:.0%}, "
             f"{device.rate / 1e12:.1f} TB/s x {device.rate_share:.0%}, {device.memory / 1e9:.0f} GB; "
             f"{links.ranks_per_node} GPUs a node, NVLink {links.near_rate / 1e9:.0f} GB/s and a NIC of "
             f"{links.far_rate / 1e9:.0f} GB/s each way and GPU; 61 layers, H 7168, 128 heads of 128 over {TEAM} GPUs, "
             f"I 2048, bfloat16; prompts of {PROMPT} tokens, {NEW} new ones; experts chosen alike by chance, or by "
             "Zipf's law with s = 0.5; planned where it says so, by the true chances, else experts in order. "
             f"Conventional: E/{GPUS} experts on each of {GPUS} GPUs, in memory or not. Groups of GPUs are replicas.")
    return textwrap.fill(words, 150)


def draw(rows: list[Row], hw, path: Path) -> None:
    from matplotlib.figure import Figure  # without pyplot, which would look for a screen
    figure = Figure(figsize=(13, 9.5), layout="constrained")
    (speed, chosen), (ways, ranks) = figure.subplots(2, 2)
    colours = dict(zip(SPECS, ("tab:blue", "tab:orange", "tab:green")))

    def pick(**given) -> list[Row]:
        return [row for row in rows if all(getattr(row, name) == value for name, value in given.items())]
    for E, colour in colours.items():
        for layout, line in (("proposed", "o-"), ("conventional", "s--")):
            label = f"E {E}, {layout}"
            found = [max(pick(E=E, K=USUAL[E], layout=layout, sequences=batch, zipf=0.0), key=lambda row: row.rate)
                     for batch in BATCHES]
            speed.plot(BATCHES, [row.rate for row in found], line, color=colour, label=label)
            speed.plot([row.sequences for row in found if not row.fits], [row.rate for row in found if not row.fits],
                       "x", color="black", markersize=11)
            found = [max(pick(E=E, K=K, layout=layout, sequences=BATCH, zipf=0.0), key=lambda row: row.rate)
                     for K in TOP_K]
            chosen.plot(TOP_K, [row.rate for row in found], line, color=colour, label=label)
            best = max(pick(E=E, K=USUAL[E], layout=layout, sequences=BATCH, zipf=0.0), key=lambda row: row.rate)
            counts = [count for count in RANKS if count >= best.group]
            ranks.loglog(counts, [count * best.rate for count in counts], line, color=colour, label=label)
    for place, (E, colour) in enumerate(colours.items()):
        for shift, layout in enumerate(("proposed", "conventional")):
            for bar, way in enumerate(WAYS):
                row, = pick(E=E, K=USUAL[E], layout=layout, sequences=BATCH, zipf=0.0, way=way)
                at = 10 * place + 4.5 * shift + bar
                ways.bar(at, 1e3 * row.tpot * (1 - row.exposed), 0.9, color=colour, alpha=0.4 if shift else 1.0)
                ways.bar(at, 1e3 * row.tpot * row.exposed, 0.9, bottom=1e3 * row.tpot * (1 - row.exposed), color="grey")
                ways.text(at, 0.5, way, rotation=90, ha="center", va="bottom", fontsize=8)
    ways.set_xticks([10 * place + 3.7 for place in range(len(SPECS))],
                    [f"E {E}\nproposed, conventional" for E in SPECS])
    for axes, x, y, title in (
            (speed, "sequences a GPU", "tokens/s of a GPU", "By batch (x: does not fit into memory)"),
            (chosen, "K", "tokens/s of a GPU", f"By experts per token, {BATCH} sequences a GPU"),
            (ways, "", "ms a step", f"TPOT by way, {BATCH} sequences a GPU (grey: exposed exchange)"),
            (ranks, "GPUs", "tokens/s", f"All GPUs, {BATCH} sequences each")):
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        axes.set_title(title)
        axes.grid(alpha=0.3)
    speed.legend(fontsize=8)
    speed.set_xscale("log", base=2)
    chosen.set_xscale("log", base=2)
    for axes, every in ((speed, BATCHES), (chosen, TOP_K)):
        axes.set_xticks(every, [str(n) for n in every])
        axes.set_ylim(bottom=0)
    figure.suptitle(assumptions(hw), fontsize=9)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--hardware", default="h100-seed")
    parser.add_argument("--main-thread", help="hardware from which all that a rank's main thread takes comes")
    asked = parser.parse_args()
    asked.folder.mkdir(parents=True, exist_ok=True)
    hw, wanted, rows, begin = machine.load(asked.hardware), grid(), [], time.perf_counter()
    if asked.main_thread:
        other = machine.load(asked.main_thread)
        hw = replace(hw, name=f"{hw.name}, the main thread of {other.name}", launch=other.launch,
                     overhead=replace(hw.overhead, host=other.overhead.host, exchange=other.overhead.exchange))
    for number, given in enumerate(wanted):
        rows.append(one(hw, *given))
        print(f"\r{number + 1} of {len(wanted)}, {time.perf_counter() - begin:.0f} s", end="", file=sys.stderr)
    print(file=sys.stderr)
    with (asked.folder / "experiment.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(asdict(rows[0])))
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)
    page(rows, hw)
    draw(rows, hw, asked.folder / "experiment.png")
    print(f"{asked.folder / 'experiment.csv'} and {asked.folder / 'experiment.png'} are written")


if __name__ == "__main__":
    main()
