"""Who holds what in a job: by its plan, or in order over the ranks."""

from pathlib import Path

from hpcmoe.config import Job
from hpcmoe.errors import InputError
from hpcmoe.files import plan
from hpcmoe.placement.plan import linear, repeated
from hpcmoe.slots import Placements
from hpcmoe.spec import ModelSpec


def place(model: ModelSpec, ranks: int, job: Job | None = None) -> Placements:
    """Which rank holds which expert, in every layer. Raises `InputError` where the job's plan is not for it."""
    if job and job.parallel.plan and model.moe:
        return _planned(model, ranks, Path(job.parallel.plan))
    spare = job and job.balance.mode == "replicas" and ranks > model.experts > 0
    return [(repeated if spare else linear)(model.experts, ranks)] * model.layers


def _planned(model: ModelSpec, ranks: int, path: Path) -> Placements:
    found = plan.read(path)
    pairs = {"ranks": (len(found.node), ranks), "layers": (len(found.placements), model.layers),
             "experts": (found.experts, model.experts), "model": (found.model, model.name)}
    differ = [f"{what}: {there} there, {here} here" for what, (there, here) in pairs.items() if there != here]
    if differ:
        raise InputError(f"plan {path} is not for this job ({'; '.join(differ)}): run hpcmoe plan again, or leave out "
                         "parallel.plan")
    for layer in model.moe_layers:
        if not len(found.placements[layer].rank):
            raise InputError(f"plan {path} holds no experts in layer {layer}, which has some: run hpcmoe plan again")
    return found.placements
