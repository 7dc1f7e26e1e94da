"""job.toml -> a frozen Job. An unknown key is an error that names the nearest known one."""

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path

from hpcmoe import shard, tables
from hpcmoe.errors import JobError
from hpcmoe.tables import Bad, key
from hpcmoe.types import MODES, TRANSPORTS


@dataclass(frozen=True)
class Generate:
    max_new_tokens: int = key(64, help="new tokens per prompt at most", least=1)
    temperature: float = key(0.0, help="0 takes the likeliest token; 1 draws as the model says", least=0)
    top_p: float = key(1.0, help="draw from the likeliest tokens that have this probability together",
                       least=1e-6, most=1)
    seed: int = key(0, help="seed of everything random, drawn weights included", least=0,
                    most=2**63 - 1)
    stop_tokens: tuple[int, ...] = key((), help="tokens that end an answer, beside the model's own")
    ignore_eos: bool = key(False, help="go on after the model's own end tokens")


@dataclass(frozen=True)
class Compute:
    device: str = key("auto", help="where the arithmetic runs", choices=("auto", "cpu", "gpu"))
    dtype: str = key("bfloat16", help="weights and activations are rounded to it; sums are float32",
                     choices=("bfloat16", "float32"))
    reproducible: bool = key(False, help="equal bits at any number of ranks, exchange and schedule; slower")


@dataclass(frozen=True)
class Exchange:
    mode: str = key("auto", help="how rows travel: by exact counts, by requests of fixed capacities, or in two hops, "
                                 "to each node once and on from there; auto measures them at the start, or goes by the "
                                 "probe", choices=("auto", *MODES, "twohop"))
    presum: bool = key(False, help="sum a token's answers in each node before they go home, with mode = twohop: fewer "
                                   "bytes between nodes, and other rounding")
    transport: str = key("auto", help="whether MPI takes rows from where they are computed, or by way of the host's "
                                      "memory; auto goes by the probe, and takes device without one",
                         choices=("auto", *TRANSPORTS))
    timeout: float = key(300.0, help="seconds that one exchange may take before the job says who is missing, and ends",
                         least=1)


@dataclass(frozen=True)
class Parallel:
    data: int = key(1, help="independent groups of neighbouring ranks, each with all experts, which share the prompts; "
                            "the number of ranks must be a multiple", least=1)
    plan: str = key("", help="who holds what, as hpcmoe plan decided it for as many ranks (of each independent group); "
                             "without a plan experts lie in order over the ranks")
    expert_tensor: int = key(1, help="shards of an expert: its width is cut over so many neighbouring ranks, which are "
                                     "one group in a plan; last bits differ from those of whole experts", least=1)
    attention_tensor: int = key(1, help="ranks of a team: the heads of attention are split over so many neighbouring "
                                        "ranks, best of one node; last bits differ from those of whole attention",
                                least=1)
    ranks_per_node: int = key(0, help="so many neighbouring ranks are one node; 0 = those that share memory", least=0)


@dataclass(frozen=True)
class Balance:
    mode: str = key("none", help="replicas: what spare ranks hold where there is no plan, which has its own; bias: "
                                 "experts with many rows are chosen less, which changes the results",
                    choices=("none", "replicas", "bias"))
    exact: bool = key(False, help="count each expert's rows on all ranks first, so that its replicas get equal parts "
                                  "however few rows a rank has; costs one small exchange a layer")
    replan_every: int = key(0, help="steps between two looks at the load: where other experts in the ranks' slots "
                                    "would spread it better, they are read beside the steps and take their places "
                                    "between two; 0 = never", least=0)
    rate: float = key(0.001, help="with mode = bias: how much an expert's score changes from step to step for the "
                                  "choice", least=0, most=1)


@dataclass(frozen=True)
class Schedule:
    mode: str = key("auto", help="how micro-batches take turns; auto cuts a step in two where the probe found that it "
                                 "pays, and never without one", choices=("auto", "serial", "overlapped"))
    micro_batches: int = key(2, help="parts of a step that take turns, where mode is serial or overlapped", least=1)
    max_sequences: int = key(0, help="sequences that a rank works on at once; 0 = planned, on a GPU no more "
                                  "than its memory holds", least=0)
    max_tokens: int = key(0, help="tokens that a rank computes in one step at most; 0 = planned", least=0)


@dataclass(frozen=True)
class Checkpoint:
    every: float = key(300.0, help="seconds between commits; 0 = behind each step that answers a prompt", least=0)
    walltime: float = key(0.0, help="seconds that the job may take: ahead of their end it commits all and ends with "
                                    "code 75; 0 = those of the Slurm job around it, without one no limit", least=0)
    on_failure: str = key("requeue", help="what the other ranks do when one dies, under Open MPI's mpirun --with-ft "
                                          "ulfm: commit all and end with code 75, or take over its experts and go on",
                          choices=("requeue", "shrink"))


@dataclass(frozen=True)
class Job:
    """Everything that a run does, resolved. Paths are absolute."""

    model: str = key(help="model.h5, or a spec.toml whose weights are drawn from the seed")
    prompts: str = key(help="prompts.h5")
    output: str = key(help="out.h5")
    mode: str = key("generate", help="generate answers, or score the prompts themselves",
                    choices=("generate", "score"))
    generate: Generate = key(Generate(), help="generation")
    compute: Compute = key(Compute(), help="arithmetic")
    exchange: Exchange = key(Exchange(), help="communication")
    schedule: Schedule = key(Schedule(), help="micro-batches")
    parallel: Parallel = key(Parallel(), help="who holds what, and where")
    balance: Balance = key(Balance(), help="uneven routing")
    checkpoint: Checkpoint = key(Checkpoint(), help="commits")
    probe: str = key("", help="what hpcmoe probe wrote on these ranks, for whatever is auto")
    shard: str = key("", help="answer a part of the prompts: 3/8 is every 8th, from the fourth on, and goes to "
                              "out.3-of-8.h5; hpcmoe pack makes one file of all")

    def toml(self) -> str:
        """The resolved job as TOML text."""
        return tables.dump(self)

    def identity(self) -> str:
        """What an answer depends on beside the model and the prompts themselves, as TOML text."""
        balance = Balance("bias", rate=self.balance.rate) if self.balance.mode == "bias" else Balance()
        cuts = replace(self.parallel, data=1, plan="", ranks_per_node=0) if self.compute.reproducible else Parallel()
        same = replace(self, model="", prompts="", output="", probe="", shard="",
                       exchange=Exchange(presum=self.exchange.presum), balance=balance,
                       parallel=cuts,
                       schedule=Schedule(), checkpoint=Checkpoint(), compute=replace(self.compute, device="auto"))
        return same.toml()


PATHS = ("model", "prompts", "output", "probe", "parallel.plan")


def device(path: Path, overrides: Iterable[str] = ()) -> str:
    """The job's `compute.device`, for those who must know before MPI starts.

    Where the job is wrong "cpu", for then nothing is computed; where it leaves the choice open, float32 is for CPUs.
    """
    try:
        compute = load(path, overrides).compute
    except JobError:
        return "cpu"
    return "cpu" if compute.device == "auto" and compute.dtype == "float32" else compute.device


def load(path: Path, overrides: Iterable[str] = ()) -> Job:
    """The job in the TOML file `path`, with `section.key=value` overrides. Raises `JobError`.

    Paths in the file are relative to the file, those in overrides to the working directory.
    """
    return build(tables.read(path, JobError, "job file"), overrides, path)


def build(table: dict, overrides: Iterable[str], path: Path) -> Job:
    """The job of a table that `path` has, or stands for; else as `load`."""
    _absolute(table, path.resolve().parent)
    for text in overrides:
        _override(table, text)
    _absolute(table, Path.cwd())
    try:
        job: Job = tables.build(Job, table)
    except Bad as bad:
        raise JobError(f"{path}: {bad}") from None
    if job.shard:
        part = shard.parse(job.shard)
        job = replace(job, shard=str(part), output=str(part.named(Path(job.output))))
    if (job.compute.device, job.compute.dtype) == ("gpu", "float32"):
        raise JobError(f"{path}: compute.dtype = float32 is computed on CPUs: set compute.device = cpu, or bfloat16")
    if job.exchange.presum and job.exchange.mode != "twohop":
        raise JobError(f"{path}: exchange.presum is for rows that travel by nodes: set exchange.mode = twohop too")
    if job.exchange.presum and job.compute.reproducible:
        raise JobError(f"{path}: with exchange.presum results depend on who shares a node, so they are not "
                       "compute.reproducible: leave one of them out")
    if job.balance.mode == "bias" and job.compute.reproducible:
        raise JobError(f"{path}: with balance.mode = bias results depend on which tokens share a step, so they are not "
                       "compute.reproducible: leave one of them out")
    if job.balance.mode == "bias" and job.balance.replan_every:
        raise JobError(f"{path}: balance.mode = bias evens the load itself: leave out balance.replan_every, or "
                       "the bias")
    if (shards := job.parallel.expert_tensor) > 1 and job.exchange.presum:
        raise JobError(f"{path}: parallel.expert_tensor = {shards}: parts of an answer are summed where it is wanted: "
                       "leave out exchange.presum")
    if shards > 1 and job.checkpoint.on_failure == "shrink":
        raise JobError(f"{path}: parallel.expert_tensor = {shards}: a lost rank breaks the group that shares its "
                       "experts: set checkpoint.on_failure = requeue")
    if (team := job.parallel.attention_tensor) > 1 and job.checkpoint.on_failure == "shrink":
        raise JobError(f"{path}: parallel.attention_tensor = {team}: a lost rank takes heads of its team with it: set "
                       "checkpoint.on_failure = requeue")
    if job.checkpoint.on_failure == "shrink" and job.parallel.data > 1:
        raise JobError(f"{path}: with parallel.data = {job.parallel.data} nobody takes over the experts of a rank that "
                       "dies: leave out checkpoint.on_failure = shrink, or parallel.data")
    return job


def _absolute(table: dict, folder: Path) -> None:
    for path in PATHS:
        *sections, name = path.split(".")
        at = reduce(lambda inner, section: inner.get(section, {}) if isinstance(inner, dict) else {}, sections, table)
        if isinstance(at, dict) and isinstance(at.get(name), str) and at[name]:
            if "\0" in at[name]:
                raise JobError(f"{path} has a character with the code 0, which no path can have")
            at[name] = str((folder / os.path.expanduser(at[name])).absolute())


def _override(table: dict, text: str) -> None:
    path, equals, value = text.partition("=")
    if not equals or not path.strip():
        raise JobError(f"--set {text}: should be section.key=value")
    *sections, name = path.strip().split(".")
    for section in sections:
        table = table.setdefault(section, {})
        if not isinstance(table, dict):
            raise JobError(f"--set {text}: {section} is not a section")
    try:
        table[name] = tables.parse(f"value = {value}")["value"]
    except Bad:
        table[name] = value.strip()  # a bare word is a string
