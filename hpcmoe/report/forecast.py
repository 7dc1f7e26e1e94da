"""The verb `predict`, which imports what it needs when it is called."""

from pathlib import Path

import click

from hpcmoe.report.benches import FILE, SET, whole_numbers


@click.command(short_help="Say how fast a job would be, at any number of ranks.")
@click.argument("source", type=FILE)
@SET
@click.option("--ranks", default="16,64,256,1024,4096", show_default=True, callback=whole_numbers,
              help="Ranks of the job, a list.")
@click.option("--hardware", default="h100-seed", show_default=True, metavar="NAME",
              help="gh200-slingshot, h100-ib, h100-seed, h200, or a TOML file, as hpcmoe bench machine writes it.")
@click.option("--routing", type=FILE, help="Results of a run of the model: experts are as busy as there.")
@click.option("--zipf", type=click.FloatRange(0), default=0.0, show_default=True,
              help="Without --routing: experts are as busy as 1, 2^-s, 3^-s, …; 0 = each as likely as any other.")
@click.option("--slow", type=(click.IntRange(0), click.FloatRange(1)), default=(0, 1.0), metavar="RANKS FACTOR",
              help="Of each group so many ranks compute so many times as long.")
@click.option("--prompt-tokens", type=click.IntRange(1), help="Tokens of a prompt; else those of the job, or 512.")
@click.option("--steps", type=click.IntRange(1), default=10, show_default=True,
              help="Steps of one token for each sequence that are simulated.")
@click.option("-o", "--output", type=FILE, help="Keep the figures, as JSON.")
def predict(source: Path, overrides: tuple[str, ...], ranks: list[int], hardware: str, routing: Path | None,
            zipf: float, slow: tuple[int, float], prompt_tokens: int | None, steps: int, output: Path | None) -> None:
    """Simulate steps of SOURCE, a job or a model's SPEC.toml, under a clock of its own, without MPI and without a GPU:
    the schedule is that of run, what it starts costs what bytes, FLOPs and links of the hardware make it cost.

    A SPEC.toml alone is run with one expert per GPU and layer, in as many groups as there are GPUs for, and with as
    many sequences as fit. Where another layout of the same GPUs would give more tokens/s, it is named.
    """
    from hpcmoe.report import predict as page
    page.predict(source, overrides, ranks, page.Asked(hardware, routing, zipf, slow, prompt_tokens, steps, output))
