"""The command line: one function per verb, each of which imports what it needs when it is called."""

import sys
import traceback
from pathlib import Path

import click

from hpcmoe import __version__
from hpcmoe.errors import INTERNAL, HpcmoeError, JobError
from hpcmoe.launch import INTERRUPTED
from hpcmoe.launcher import rank_by_launcher
from hpcmoe.launcher import report as say
from hpcmoe.paths import check_output
from hpcmoe.report.benches import FILE, SET, bench
from hpcmoe.report.forecast import predict

SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


@click.group(context_settings=SETTINGS, no_args_is_help=False)
@click.version_option(__version__, prog_name="hpcmoe")
def cli() -> None:
    """Mixture-of-Experts inference as a batch job: one MPI rank and one expert per GPU, HDF5 in and out."""


ANEW = click.option("--overwrite", is_flag=True,
                    help="Begin anew where an unfinished output of another source or other options lies.")


@cli.command(short_help="Make a model file from a checkpoint.")
@click.argument("source", type=FILE)
@click.option("-o", "--output", type=FILE, required=True, help="The model.h5 to write.")
@click.option("--dtype", type=click.Choice(["bfloat16", "float32"]), default="bfloat16", show_default=True,
              help="What to round the weights to.")
@click.option("--upcycle", type=click.Choice(["copies", "slices"]),
              help="Turn each dense feed-forward block into experts.")
@click.option("--experts", type=click.IntRange(1), default=16, show_default=True, help="E, with --upcycle.")
@click.option("--top-k", type=click.IntRange(1), default=2, show_default=True, help="K, with --upcycle copies.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the gate, with --upcycle.")
@ANEW
def convert(source: Path, output: Path, dtype: str, upcycle: str | None, experts: int, top_k: int,
            seed: int, overwrite: bool) -> None:
    """Make a model file from SOURCE: a folder with a Hugging Face checkpoint (config.json, safetensors), or a
    GGUF file.

    Under a launcher all ranks share the work, as in mpiexec -n 8 hpcmoe convert SOURCE -o model.h5. What ends before
    it is done leaves model.h5.unfinished, and the same command goes on with it, on any number of ranks.

    --upcycle copies makes every expert a copy of the block (hard links: the file stays small) behind a random
    gate; --upcycle slices cuts the block into E parts that all tokens go to. Either way the answers are those
    of the dense model.
    """
    from hpcmoe.convert import checkpoint
    sys.exit(checkpoint.convert(source, output, dtype, upcycle, experts, top_k, seed, overwrite))


@cli.command(short_help="Make a model file with random weights.")
@click.argument("spec", type=FILE)
@click.option("-o", "--output", type=FILE, required=True, help="The model.h5 to write.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the weights.")
@click.option("--dtype", type=click.Choice(["bfloat16", "float32"]), default="bfloat16", show_default=True,
              help="What to round the weights to.")
@ANEW
def init(spec: Path, output: Path, seed: int, dtype: str, overwrite: bool) -> None:
    """Make a model file with random weights of the shapes in SPEC, a TOML file such as inputs/seed61.toml.

    Under a launcher all ranks share the work, and what ends before it is done is gone on with, as by hpcmoe convert.

    A job may also name the SPEC itself: each rank then draws its share, the same weights, without a file.
    """
    from hpcmoe.convert import checkpoint
    sys.exit(checkpoint.init(spec, output, seed, dtype, overwrite))


@cli.command(short_help="Make a prompts file from text or JSONL.")
@click.argument("source", type=FILE)
@click.option("-o", "--output", type=FILE, required=True, help="The prompts.h5 to write.")
@click.option("--model", type=FILE, required=True, help="The model.h5 (or spec.toml) that the prompts are for.")
def prompts(source: Path, output: Path, model: Path) -> None:
    """Make a prompts file from SOURCE: a text file with a prompt a line, or JSONL (.jsonl).

    A line of JSONL has "text", "tokens", or "messages" for the model's chat template, and "id" where wanted; or it is
    a request as OpenAI's and vLLM's batch runners read them ("custom_id", "url", "body"). hpcmoe export writes the
    answers in their form.
    """
    from hpcmoe.engine.inputs import open_model
    from hpcmoe.files import prompts as layout
    check_output(output, source, model)
    count = layout.convert(source, output, open_model(model))
    click.echo(f"{output}: {count} prompts")


@cli.command(short_help="Find what is wrong with a job before it queues.")
@click.argument("job", type=FILE)
@SET
@click.option("--ranks", type=click.IntRange(1), default=1, show_default=True, help="Ranks that the job will have.")
@click.option("--gpu-memory", metavar="SIZE",
              help="Memory of each GPU, as 80GB: does it fit, and what would? Without it, a CPU's needs are shown.")
@click.option("--hardware", metavar="NAME", help="As of predict: which layouts fit there, and how fast they are.")
def check(job: Path, overrides: tuple[str, ...], ranks: int, gpu_memory: str | None, hardware: str | None) -> None:
    """Check JOB and all that it names, without MPI and without a GPU, and show the memory that each rank needs.

    JOB may also be a model's SPEC.toml, to see what its weights need, and which layouts of it fit.
    """
    from hpcmoe.report import check as page
    if hardware or (gpu_memory and page.is_spec(job)):
        from hpcmoe.report import layouts
        layouts.show(job, overrides, ranks, hardware, gpu_memory)
    page.check(job, overrides, ranks, gpu_memory)


@cli.command(short_help="Try what works on these ranks, and how fast.")
@click.argument("job", type=FILE)
@SET
@click.option("-o", "--output", type=FILE, help="The file to write; without it the job's probe, or probe.h5 beside it.")
def probe(job: Path, overrides: tuple[str, ...], output: Path | None) -> None:
    """Try how JOB can run on these ranks, as a job step of its own: mpiexec -n 16 hpcmoe probe job.toml.

    Looks at ranks, cores, MPI's threads and memory; tries every transport and mode of the exchange; times them, and
    steps with and without overlap. A run of the job whose key probe names the file goes by it where it says auto.
    """
    from hpcmoe.report import probe as page
    sys.exit(page.run(job, overrides, output))


@cli.command(short_help="Run a job.")
@click.argument("job", type=FILE)
@SET
@click.option("-o", "--output", type=FILE, help="Override the job's output.")
@click.option("--overwrite", is_flag=True, help="Replace an output that exists, finished or not.")
@click.option("--trace", is_flag=True, help="Write what each rank did when to OUTPUT.trace.json, for ui.perfetto.dev.")
def run(job: Path, overrides: tuple[str, ...], output: Path | None, overwrite: bool, trace: bool) -> None:
    """Run JOB on all ranks of the launcher, as in mpiexec -n 16 hpcmoe run job.toml; on one without it.

    An unfinished output of the same job is continued, a finished one is left alone.
    """
    import tomli_w

    from hpcmoe.report import run as page
    chosen = overrides + ((tomli_w.dumps({"output": str(output)}),) if output else ())
    sys.exit(page.run(job, chosen, overwrite, trace))


@cli.command(short_help="Write the answers as JSONL.")
@click.argument("results", type=FILE)
@click.option("-o", "--output", type=FILE, required=True, help="The .jsonl to write.")
@click.option("--prompts", type=FILE, help="The prompts.h5; without it the one that the results' job names.")
def export(results: Path, output: Path, prompts: Path | None) -> None:
    """Write the answers in RESULTS as JSONL: a line for each prompt, in the form in which OpenAI's and vLLM's batch
    runners answer requests."""
    from hpcmoe.report import export as page
    click.echo(f"{output}: {page.export(results, output, prompts)} answers")


@cli.command(short_help="Plan who holds which experts, by an earlier run.")
@click.argument("results", type=FILE)
@click.option("-o", "--output", type=FILE, required=True, help="The plan.h5 to write.")
@click.option("--policy", type=click.Choice(["linear", "random", "load", "topology", "quick"]), default="topology",
              show_default=True, help="What comes first, see above.")
@click.option("--ranks", type=click.IntRange(1, 4096), help="Ranks of the job; without it as many as the run had.")
@click.option("--slots", type=click.IntRange(1),
              help="Experts that a rank may hold in a layer, replicas included; without it as few as will do.")
@click.option("--topology", type=FILE, help="What hpcmoe bench topology wrote on these ranks.")
@click.option("--ranks-per-node", type=click.IntRange(1),
              help="Without a topology: how ranks lie on nodes. Without both as in the run.")
@click.option("--exchange", type=click.Choice(["flat", "twohop", "auto"]), default="auto", show_default=True,
              help="How the job's rows will travel; auto takes what is expected to be quicker.")
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True, help="Of all that is drawn.")
def plan(results: Path, output: Path, policy: str, ranks: int | None, slots: int | None, topology: Path | None,
         ranks_per_node: int | None, exchange: str, seed: int) -> None:
    """Plan which rank holds which experts in each layer, by where the tokens of an earlier run went, whose file is
    RESULTS.

    \b
    linear    experts in order, as without a plan
    random    in any order
    load      as even as replicas and packing make the ranks' rows
    topology  the slowest rank as quick as can be, links counted in; with exchange twohop the fewest rows
              between nodes come first
    quick     as topology, but the slowest rank always comes first

    Spare room, by --slots or where ranks outnumber experts, is used for replicas where these relieve the fullest rank.
    """
    from hpcmoe.report import plan as page
    page.make(results, output, page.Asked(policy, ranks, slots, topology, ranks_per_node, exchange, seed))


@cli.command(short_help="Make one results file of a job array's.")
@click.argument("outputs", type=FILE, nargs=-1, required=True)
@click.option("-o", "--output", type=FILE, required=True, help="The results file to write.")
@click.option("--overwrite", is_flag=True, help="Replace an output that exists.")
def pack(outputs: tuple[Path, ...], output: Path, overwrite: bool) -> None:
    """Make one results file of OUTPUTS, those of all shards of a job (its key shard), in the order of the prompts:
    hpcmoe pack out.*-of-8.h5 -o out.h5.

    It is what the job would have written as a whole. Shards that are missing are named.
    """
    from hpcmoe.report import pack as page
    page.pack(outputs, output, overwrite)


@cli.command(short_help="Show any file of hpcmoe's.")
@click.argument("file", type=FILE)
@click.option("-n", "--limit", type=click.IntRange(0), default=20, show_default=True, help="Prompts to show at most.")
def show(file: Path, limit: int) -> None:
    """Show FILE (model, prompts, results or what else hpcmoe writes) as a person wants to read it."""
    from hpcmoe.report import show as page
    page.show(file, limit)


@cli.command(short_help="Make a page with figures of finished runs.")
@click.argument("outputs", type=FILE, nargs=-1, required=True)
@click.option("-o", "--output", type=FILE, help="The .html to write; without it out.report.html beside the first file.")
@click.option("--text", "only_text", is_flag=True, help="Print the tables, and write nothing.")
@click.option("--hardware", metavar="NAME", help="As of predict: what the runs' own jobs would take there, beside what "
                                                 "they took; and the roofline.")
def report(outputs: tuple[Path, ...], output: Path | None, only_text: bool, hardware: str | None) -> None:
    """Tell what the runs came to whose results are OUTPUTS: tables here, and a page with figures that needs no
    network, its pictures beside it as PNG.

    Of two runs it says what changed and what that did, of several of one job how speed grows with the ranks.
    """
    from hpcmoe.report import report as page
    page.report(outputs, output, only_text, hardware)


@cli.command(short_help="Print every key of a job file.")
def keys() -> None:
    """Print every key of a job file with its default and its meaning."""
    from hpcmoe.report.keys import page
    click.echo(page(), nl=False)


@cli.command(short_help="Compare a few prompts with the slow reference.")
@click.argument("job", type=FILE)
@SET
@click.option("--prompts", "count", type=click.IntRange(1), default=2, show_default=True,
              help="How many, from the first.")
@click.option("--tokens", type=click.IntRange(1), default=4, show_default=True, help="Greedy tokens behind each.")
@click.option("--checkpoint", type=FILE, help="What the model was converted from: asks transformers too.")
def verify(job: Path, overrides: tuple[str, ...], count: int, tokens: int, checkpoint: Path | None) -> None:
    """Run a few prompts of JOB in one process, and compare the logits with those of a slow and simple reference,
    and of transformers where it is installed and --checkpoint names what the model was converted from."""
    from hpcmoe.report.verify import page
    sys.exit(page(job, overrides, count, tokens, checkpoint))


cli.add_command(bench)
cli.add_command(predict)


def main() -> None:
    """Entry point: failures that users can mend are one line and an exit code, the rest is a traceback."""
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]  # a log may know no Unicode
    try:
        cli.main(prog_name="hpcmoe", standalone_mode=False)
    except HpcmoeError as error:
        _end(str(error), error.code)
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else "hpcmoe"
        _end(f"{error.format_message()} (see {command} --help)", JobError.code)
    except click.Abort:
        _end("interrupted", INTERRUPTED)
    except Exception:  # a defect
        traceback.print_exc()
        sys.exit(INTERNAL)


def _end(line: str, code: int) -> None:
    if rank_by_launcher() == 0:  # all ranks read the same command line
        say(line)
    sys.exit(code)


if __name__ == "__main__":
    main()
