"""What a job starts from, checked: with no MPI and no GPU, so that `check` finds before the queue
what `run` would find after it."""

from dataclasses import dataclass
from pathlib import Path

from hpcmoe import spec
from hpcmoe.config import Job
from hpcmoe.errors import InputError
from hpcmoe.files import prompts
from hpcmoe.files.drawn import Drawn
from hpcmoe.files.model import ModelFile
from hpcmoe.files.prompts import Prompts


def open_model(job: Job) -> ModelFile | Drawn:
    """The job's weights: a model file, or drawn from the seed where it names a spec. Raises `InputError`."""
    path = Path(job.model)
    if path.suffix == ".toml":
        return Drawn(spec.load(path), job.generate.seed)
    return ModelFile(path)


@dataclass(frozen=True)
class Inputs:
    """A job's model and prompts."""

    model: ModelFile | Drawn
    prompts: Prompts

    def identity(self, job: Job) -> str:
        """What the results depend on, as text."""
        return f"{job.identity()}\n# model {self.model.uuid}\n# prompts {self.prompts.uuid}\n"


def read(job: Job) -> Inputs:
    """Opens and checks what the job names. Raises `InputError`."""
    model = open_model(job)
    path = Path(job.prompts)
    if path.suffix in (".txt", ".jsonl"):
        raise InputError(f"prompts {path} is a text file: first run hpcmoe prompts {path.name} "
                         f"-o {path.with_suffix('.h5').name} --model {Path(job.model).name}")
    found = prompts.read(path)
    prompts.check(found, model.spec, str(path))
    return Inputs(model, found)
