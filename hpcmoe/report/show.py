"""The page that `show` prints of any of our files."""

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hpcmoe import spec, tables
from hpcmoe.errors import InputError, visible
from hpcmoe.files import begun, bias, exchange, first, h5, parts, plan, probe, prompts, results, topology, vet
from hpcmoe.files.bias import Biased
from hpcmoe.files.model import ModelFile
from hpcmoe.files.results import StepTable
from hpcmoe.report import bench_exchange, bench_topology, text
from hpcmoe.report.latency import PERCENTILES, firsts
from hpcmoe.report.plan import page as plan_page
from hpcmoe.report.probe import page as probe_page
from hpcmoe.traffic import CLASSES
from hpcmoe.types import STAGES, Answer

WIDEST = 16
"""Columns of experts that a table shows."""


def show(path: Path, limit: int) -> None:
    """Prints `path`, with `limit` prompts at most. Raises `InputError`."""
    vet.check(path)
    with h5.reading(path) as file:
        layout = h5.layout_of(file)
    pages = {"model": _model, "prompts": _prompts, "results": _results, "part": _results, "begun": _begun,
             "exchange": _exchange, "probe": _probe, "plan": _plan, "topology": _topology}
    if layout not in pages:
        raise InputError(f"{path} is a {layout} file, which this hpcmoe cannot show: update hpcmoe")
    pages[layout](text.console(), path, limit)


def _head(out: Console, file: h5py.File, path: Path) -> None:
    layout, creator, created = (h5.attribute(file, name, path, str) for name in ("format", "creator", "created"))
    out.print(f"{path}: {layout.removeprefix(h5.OURS)}, made by {creator}, {created}")


def _model(out: Console, path: Path, limit: int) -> None:
    model = ModelFile(path)
    with h5.reading(path, "model") as file:
        _head(out, file, path)
    out.print(f"{model.spec.name}, {model.dtype}, "
              f"{'with' if model.tokenizer else 'without'} a tokenizer, {text.size(path.stat().st_size)} on disk")
    grid = text.table("part", ">tensors", ">values", ">size")
    parts_of: dict[str, list[int]] = {}
    for t in spec.tensors(model.spec):
        parts_of.setdefault(t.part, []).append(t.values)
    itemsize = 2 if model.dtype == "bfloat16" else 4
    for part, values in parts_of.items():
        grid.add_row(part, str(len(values)), f"{sum(values):,}", text.size(sum(values) * itemsize))
    out.print(grid)
    with h5.reading(path, "model") as file:
        out.print(h5.attribute(file, "spec", path, str).rstrip())


def _prompts(out: Console, path: Path, limit: int) -> None:
    found = prompts.read(path)
    with h5.reading(path, "prompts") as file:
        _head(out, file, path)
        words = h5.strings(file, "text", path, len(found)) if "text" in file else [""] * len(found)
    lengths = found.lengths
    if len(found):
        out.print(f"{len(found)} prompts, {lengths.min()} to {lengths.max()} tokens, {lengths.sum()} in all")
    for number in range(min(limit, len(found))):
        note = text.plural(int(lengths[number]), "token")
        _entry(out, found.ids[number], note, words[number] or str(found[number].tolist()))
    _rest(out, len(found), limit)


def _results(out: Console, path: Path, limit: int) -> None:
    with h5.reading(path) as file:
        _head(out, file, path)
        out.print(h5.attribute(file, "versions", path, str))
        (ranks, groups), places = parts.groups(file, path), sorted(set(h5.strings(file, "host", path)))
        many = f" of {file.attrs['shards']} shards" if "shards" in file.attrs else ""
        cut = _shards(h5.attribute(file, "job", path, str))
        many += f" in {groups} independent groups{' each' * bool(many)}" if groups > 1 else ""
        many += f" in groups of {cut}, which share their experts," if cut > 1 else ""
        out.print(f"{text.plural(ranks, 'rank')}{many} on {text.plural(len(places), 'host')} "
                  f"({', '.join(places[:8])})")
        _answers(out, file, path, limit)
        load = parts.take_load(file, path)
        if load.size and np.any(load):
            print_load(out, load, h5.attribute(file, "experts_per_rank", path, int))
        if biased := bias.take(file, len(load), path):
            print_bias(out, biased, load)
        if "timings/mean" in file:
            steps = results.steps(file, path)
            out.print(speed_line(steps, was_scored(file, path)))
            print_first(out, first.take(file, path, len(file["prompt"])))
            print_traffic(out, steps)
            out.print("Seconds by stage, summed over the steps:")
            out.print(stage_table(steps))


def _shards(job: str) -> int:
    """`parallel.expert_tensor` of a job; 1 where it has none."""
    try:
        return int(tables.parse(job)["parallel"]["expert_tensor"])
    except (tables.Bad, KeyError, TypeError, ValueError):
        return 1


def _answers(out: Console, file: h5py.File, path: Path, limit: int) -> None:
    found = parts.take_answers(file, path)
    ids = h5.strings(file, "id", path, len(found)) if "id" in file else [f"prompt {a.prompt}" for a in found]
    words = h5.strings(file, "text", path, len(found)) if "text" in file else [""] * len(found)
    for answer, name, said in list(zip(found, ids, words))[:limit]:
        note = f"{text.plural(len(answer.tokens), 'token')}, {answer.stop}"
        one = perplexity([answer])
        _entry(out, name, note if math.isnan(one) else f"{note}, perplexity {one:.3f}",
               said or str(answer.tokens.tolist()))
    _rest(out, len(found), limit)
    if not math.isnan(perplexity(found)):
        out.print(f"Perplexity of all tokens {perplexity(found):.4f}")


def _begun(out: Console, path: Path, limit: int) -> None:
    with h5.reading(path, "begun") as file:
        _head(out, file, path)
    found = begun.read(path)
    out.print(f"answers that have begun, and go on in another run: {len(found)}")
    for one in found[:limit]:
        _entry(out, f"prompt {one.prompt}", f"{text.plural(len(one.tokens), 'token')} so far", str(one.tokens.tolist()))
    _rest(out, len(found), limit)


def perplexity(found: Sequence[Answer]) -> float:
    """exp of the mean negative log-probability of all tokens that have one; NaN where none has."""
    logprobs = np.concatenate([a.logprobs for a in found]) if found else np.empty(0, np.float32)
    known = logprobs[~np.isnan(logprobs)]
    with np.errstate(all="ignore"):  # of what was impossible
        return float(np.exp(-known.mean(dtype=np.float64))) if len(known) else float("nan")


def _probe(out: Console, path: Path, limit: int) -> None:
    found = probe.read(path)
    with h5.reading(path, "probe") as file:
        _head(out, file, path)
    probe_page(out, found)


def _exchange(out: Console, path: Path, limit: int) -> None:
    with h5.reading(path, "exchange") as file:
        _head(out, file, path)
    bench_exchange.page(out, exchange.read(path))


def _plan(out: Console, path: Path, limit: int) -> None:
    found = plan.read(path)
    with h5.reading(path, "plan") as file:
        _head(out, file, path)
    plan_page(out, found, limit)


def _topology(out: Console, path: Path, limit: int) -> None:
    found = topology.read(path)
    with h5.reading(path, "topology") as file:
        _head(out, file, path)
    bench_topology.page(out, found)


def _entry(out: Console, name: str, note: str, words: str) -> None:
    out.print(Text.assemble((visible(name), "bold"), f"  ({note})"))
    wrap = textwrap.TextWrapper(width=out.width, initial_indent="    ", subsequent_indent="    ")
    for line in words.strip().splitlines():
        out.print(wrap.fill(line), soft_wrap=True)
    out.print()


def _rest(out: Console, count: int, limit: int) -> None:
    if count > limit:
        out.print(f"… and {count - limit} more (--limit shows more)\n")


def was_scored(file: h5py.File, path: Path) -> bool:
    """Whether a results file has scores of the prompts, and not answers to them."""
    return "scored" in h5.strings(file, "stop", path)


def speed_line(steps: StepTable, scored: bool) -> str:
    """Tokens and tokens/s over all steps."""
    wall, new = steps.seconds, int(steps.chosen.sum())
    return (f"{new} {'scored' if scored else 'new'} tokens in {len(steps.wall)} steps and {text.seconds(wall)}: "
            f"{new / max(wall, 1e-9):.1f} tokens/s ({int(steps.tokens.sum())} computed, prompts included)")


def print_first(out: Console, seconds: np.ndarray) -> None:
    """How long prompts that were begun waited for their first tokens, where that is known; seconds `[P]`."""
    found = dict(zip(PERCENTILES, firsts(seconds)))
    if not math.isnan(found[50]):
        out.print(f"First token of a prompt, from when it got its slot: half had it within {text.seconds(found[50])}, "
                  f"99 % within {text.seconds(found[99])}, all within {text.seconds(found[100])}")


def print_traffic(out: Console, steps: StepTable) -> None:
    """What all exchanges took and moved, where there were any: "exchange 12.3 s, 2.1 s exposed (83 % hidden) …"."""
    sums = steps.moved
    if not sums.seconds:
        return
    moved = max(int(sums.bytes.sum()), 1)
    shares = ", ".join(f"{100 * count / moved:.0f} % {where}" for where, count in zip(CLASSES, sums.bytes.tolist()))
    out.print(f"exchange {text.seconds(float(sums.seconds))}, {text.seconds(float(sums.exposed))} exposed "
              f"({100 * float(sums.hidden):.0f} % hidden), {text.size(int(sums.bytes.sum()))}: {shares}")


def stage_table(steps: StepTable) -> Table:
    """Seconds of all steps, by stage."""
    grid = text.table("stage", ">mean over ranks", ">slowest rank", ">share")
    total = max(float(steps.average.sum()), 1e-12)
    for name, mean, slowest in zip(STAGES, steps.average.tolist(), steps.slowest.tolist()):
        grid.add_row(name, text.seconds(mean), text.seconds(slowest), f"{100 * mean / total:.0f} %")
    return grid


def print_bias(out: Console, found: Biased, load: np.ndarray) -> None:
    """Prints what a selection bias did; load `[L, E]`."""
    used = load.any(axis=1)
    share = found.moved[used] / load[used].sum(axis=1)
    line = (f"A selection bias moved {100 * found.moved.sum() / max(load.sum(), 1):.2f} % of the assignments to other "
            f"experts, {100 * share.max(initial=0):.2f} % in a layer at most")
    if found.tokens:
        with_it, without = found.perplexity
        line += (f"; perplexity of {found.tokens:,} tokens of the prompts {with_it:.4f} with the last one, "
                 f"{without:.4f} without")
    out.print(line)


def print_load(out: Console, load: np.ndarray, slots: int) -> None:
    """Rows per expert over all layers, and the imbalance of the layers; load `[L, E]` int64."""
    busy = load[load.sum(axis=1) > 0]
    total = busy.sum(axis=0)
    imbalance = busy.max(axis=1) / busy.mean(axis=1)
    out.print(f"Load of the experts, {slots} per rank at most: rows over {text.plural(len(busy), 'layer')}; "
              f"busiest over mean in a layer {imbalance.mean():.2f}, at worst {imbalance.max():.2f}")
    grid = text.table(">expert", ">rows", ">share", "")
    order = range(len(total)) if len(total) <= WIDEST else np.argsort(-total)[:WIDEST]
    for expert in order:
        share = total[expert] / total.sum()
        grid.add_row(str(expert), f"{total[expert]:,}", f"{100 * share:.1f} %",
                     "█" * round(20 * total[expert] / total.max()))
    if len(total) > WIDEST:
        grid.add_row("others", f"{total.sum() - np.sort(total)[-WIDEST:].sum():,}", "", "")
    out.print(grid)
