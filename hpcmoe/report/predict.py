"""The pages of `predict`."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from hpcmoe import config, paths, spec_table
from hpcmoe.config import Job
from hpcmoe.engine import inputs
from hpcmoe.engine.memory import MOST_SEQUENCES, MOST_TOKENS
from hpcmoe.errors import JobError, size
from hpcmoe.files import place, results
from hpcmoe.predict import demand, machine
from hpcmoe.predict import predict as predicting
from hpcmoe.predict.layout import Load
from hpcmoe.predict.machine import Hardware
from hpcmoe.predict.predict import Prediction, Speed
from hpcmoe.predict.simulate import Given
from hpcmoe.report import text
from hpcmoe.report.check import is_spec
from hpcmoe.spec import ModelSpec
from hpcmoe.types import STAGES

PROMPT = 512
"""Tokens of a prompt, where neither a job nor an option says more."""


@dataclass(frozen=True)
class Asked:
    """What the command line says beside job and ranks."""

    hardware: str
    routing: Path | None
    zipf: float
    slow: tuple[int, float]
    prompt: int | None
    steps: int
    output: Path | None


@dataclass(frozen=True)
class Source:
    """What is predicted."""

    model: ModelSpec
    job: Job
    load: Load
    prompts: int
    """how many; 0 = no end of them"""
    said: bool
    """whether the job says how it is laid out"""

    def on(self, ranks: int) -> Load:
        """Its load on so many ranks, which share its prompts."""
        if not self.prompts:
            return self.load
        return replace(self.load, most=min(MOST_SEQUENCES, -(-self.prompts // ranks)))


def predict(path: Path, overrides: Iterable[str], ranks: Sequence[int], asked: Asked) -> None:
    """Prints the page. Raises `JobError`, `InputError`."""
    if asked.output:
        paths.check_output(asked.output, path)
        if asked.output.suffix.lower() != ".json":
            raise JobError(f"-o {asked.output}: should end in .json")
    hw, source = machine.load(asked.hardware), read(path, overrides, asked.prompt)
    given = _given(source.model, asked)
    found = [predicting.predict(source.model, hw, count, source.job, source.on(count), given, source.said, asked.steps)
             for count in sorted(set(ranks))]
    out = text.console()
    page(out, source, hw, found, asked)
    if asked.output:
        with place.writing(asked.output, "wb") as file:
            file.write(json.dumps({"model": source.model.name, "hardware": hw.name, "prompt": source.load.prompt,
                                   "new": source.load.new, "predictions": predicting.table(found, hw)},
                                  indent=1).encode())
        out.print(f"\n{asked.output} is written")


def read(path: Path, overrides: Iterable[str], prompt: int | None) -> Source:
    """A job, or a spec with the keys that a job would have. Raises `JobError`, `InputError`."""
    if is_spec(path):
        model = spec_table.load(path)
        job = config.build({"model": str(path), "prompts": "", "output": ""}, overrides, path)
        length = min(prompt or PROMPT, max(1, model.context - job.generate.max_new_tokens))
        named = any(text.startswith("parallel.") for text in overrides)
        return Source(model, job, _load(model, job, length), 0, named)
    job = config.load(path, overrides)
    found = inputs.read(job)
    length = prompt or max(1, round(float(found.prompts.lengths[found.rows].mean())))
    model = found.model.spec
    return Source(model, job, _load(model, job, length), len(found.rows), True)


def _load(model: ModelSpec, job: Job, prompt: int) -> Load:
    new = job.generate.max_new_tokens if job.mode == "generate" else 1
    return Load(job.schedule.max_sequences, prompt, max(1, min(new, model.context - prompt)),
                job.schedule.max_tokens or MOST_TOKENS)


def _given(model: ModelSpec, asked: Asked) -> Given:
    """How the experts are taken to be used."""
    slowed, factor = asked.slow
    if not model.moe:
        return Given(demand.NONE, slowed=slowed, factor=factor)
    if asked.routing is None:
        use = demand.skewed(model.moe, len(model.moe_layers), asked.zipf, 0)
    else:
        use = demand.traced(results.routing(asked.routing), model.moe, model.moe_layers, str(asked.routing))
    return Given(use, slowed=slowed, factor=factor)


def page(out: Console, source: Source, hw: Hardware, found: Sequence[Prediction], asked: Asked) -> None:
    """All tables."""
    model, load = source.model, source.load
    out.print(f"{model.name} on {hw.name}: prompts of {text.plural(load.prompt, 'token')}, {load.new} new ones each; "
              f"{_use(model, asked)}; simulated, {asked.steps} steps of one token for each sequence")
    for line in predicting.left_out(source.job, model):
        out.print(line)
    grid = text.table(">ranks", ">experts", ">EP", ">groups", ">heads over", ">sequences", ">tokens/s", ">of a GPU",
                      ">TPOT", ">TTFT", ">exposed", ">memory")
    for one in found:
        for speed in filter(None, (one.speed, one.better)):
            grid.add_row(*_row(model, speed))
    out.print(grid)
    out.print("experts: of a GPU and layer; a second row with the same ranks is a faster layout of them; exposed: part "
              "of a step in which\nranks wait for rows and compute nothing\n")
    grid = text.table(">ranks", "rows travel", ">same node", ">other nodes", ">imbalance", ">GPU-hours", ">node-hours")
    for one in found:
        near, far = one.speed.bytes[1:].tolist()
        spent = predicting.hours(one.speed)
        grid.add_row(f"{one.speed.layout.ranks:,}", _ways(one.speed), size(near), size(far),
                     f"{one.speed.imbalance:.2f}", f"{spent:,.2f}",
                     f"{spent / predicting.per_node(one.speed.layout, hw):,.2f}")
    out.print("Bytes that a rank sends in a step of one token for each sequence; hours for a million new tokens")
    out.print(grid)
    _stages(out, found)
    _verdicts(out, model, found)


def _stages(out: Console, found: Sequence[Prediction]) -> None:
    every = [{stage: f"{text.seconds(seconds)} {bound}" for stage, seconds, bound in
              predicting.bounds(one.speed)} for one in found]
    grid = text.table("stage", *(f">{one.speed.layout.ranks:,} ranks" for one in found))
    for name in STAGES:
        if any(name in stages for stages in every):
            grid.add_row(name, *(stages.get(name, "") for stages in every))
    out.print("\nA step of one token for each sequence by stage, and what bounds it (of the exchange: the waiting)")
    out.print(grid)


def _verdicts(out: Console, model: ModelSpec, found: Sequence[Prediction]) -> None:
    out.print()
    for one in found:
        mine, other = one.speed, one.better
        at = f"{mine.layout.ranks:,} ranks: "
        if not mine.fits:
            out.print(f"{at}{mine.layout.words(model)} does not fit: {size(mine.memory.total)} per rank are needed"
                      f"{'; as if it did' if not other else ''}")
        if other:
            out.print(f"{at}{mine.layout.words(model)} LOSES to {other.layout.words(model)}: {mine.rate:,.1f} against "
                      f"{other.rate:,.1f} tokens/s of a GPU")
        elif mine.fits and one.tried:
            out.print(f"{at}{mine.layout.words(model)} is the best of {one.tried + 1} layouts that fit")


def _use(model: ModelSpec, asked: Asked) -> str:
    if not model.moe:
        return f"a dense model{_slow(asked)}"
    words = f"experts used as in {asked.routing}" if asked.routing else (
        f"experts used by Zipf's law with s = {asked.zipf:g}" if asked.zipf else "experts used alike, tokens by chance")
    return words + _slow(asked)


def _slow(asked: Asked) -> str:
    ranks, factor = asked.slow
    return f"; {text.plural(ranks, 'rank')} of each group computing {factor:g} times as long" if ranks else ""


def _ways(speed: Speed) -> str:
    assert speed.simulation
    hops = "two hops, " if speed.layout.job.exchange.mode == "twohop" else ""
    parts = speed.layout.parts
    turns = f"{parts} micro-batches {speed.layout.job.schedule.mode}" if parts > 1 else "serial"
    return f"{hops}{' and '.join(speed.simulation.modes)}{', ' if speed.simulation.modes else ''}{turns}"


def _row(model: ModelSpec, speed: Speed) -> list[str]:
    layout = speed.layout
    experts = layout.slots(model)
    return [f"{layout.ranks:,}", f"{experts}{f'/{layout.shards}' if layout.shards > 1 else ''}", f"{layout.group:,}",
            f"{layout.data:,}", str(layout.team), str(speed.load.sequences), f"{speed.rate * layout.ranks:,.0f}",
            f"{speed.rate:,.1f}", text.seconds(speed.tpot), text.seconds(speed.ttft),
            f"{100 * speed.exposed / speed.tpot:.0f} %", size(speed.memory.total) + ("" if speed.fits else " (!)")]
