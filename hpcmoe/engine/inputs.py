"""What a job starts from, checked: with no MPI and no GPU, so that `check` finds before the queue
what `run` would find after it."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hpcmoe import shard, spec_table
from hpcmoe.config import Job
from hpcmoe.errors import InputError, JobError
from hpcmoe.files import prompts, tokenizer
from hpcmoe.files.drawn import Drawn
from hpcmoe.files.model import ModelFile
from hpcmoe.files.prompts import Prompts


def open_model(path: Path, seed: int = 0) -> ModelFile | Drawn:
    """The model file at `path`, or weights drawn from the seed where it is a spec. Raises `InputError`."""
    if path.is_dir() or path.suffix.lower() in (".gguf", ".safetensors"):
        raise InputError(f"model {path} is not a model file: if it is a checkpoint, first run hpcmoe convert {path} "
                         f"-o {path.with_suffix('.h5').name}")
    if path.suffix.lower() == ".toml":
        return Drawn(spec_table.load(path), seed)
    found = ModelFile(path)
    if found.tokenizer:
        tokenizer.check(found.tokenizer, str(path))  # now, and not when all prompts are answered
    return found


@dataclass(frozen=True)
class Inputs:
    """A job's model and prompts."""

    model: ModelFile | Drawn
    prompts: Prompts
    rows: np.ndarray
    """`[n]` int64 ascending: the prompts that the job is to answer"""

    def identity(self, job: Job) -> str:
        """What the results depend on, as text."""
        whole = f"{job.identity()}\n# model {self.model.uuid}\n# prompts {self.prompts.uuid}\n"
        return shard.marked(whole, job.shard)


def read(job: Job) -> Inputs:
    """Opens and checks what the job names. Raises `InputError`, `JobError`."""
    model = open_model(Path(job.model), job.generate.seed)
    path = Path(job.prompts)
    if path.suffix.lower() in (".txt", *prompts.JSONL):
        raise InputError(f"prompts {path} is a text file: first run hpcmoe prompts {path.name} "
                         f"-o {path.with_suffix('.h5').name} --model {Path(job.model).name}")
    found = prompts.read(path)
    prompts.check(found, model.spec, str(path), room=1 if job.mode == "generate" else 0)
    wrong = [t for t in job.generate.stop_tokens if not 0 <= t < model.spec.vocabulary]
    if wrong:
        raise JobError(f"generate.stop_tokens: {wrong[0]} is outside the vocabulary of {model.spec.vocabulary}")
    rows = shard.parse(job.shard).rows(len(found))
    if not len(rows):
        raise JobError(f"shard {job.shard}: {path} has {len(found)} prompts only: make that many shards at most")
    return Inputs(model, found, rows)
