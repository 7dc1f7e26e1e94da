"""Who holds what in a job: by its plan, or in order over the ranks."""

from pathlib import Path

from hpcmoe.config import Job
from hpcmoe.errors import InputError, JobError
from hpcmoe.files import plan
from hpcmoe.placement.plan import linear, repeated
from hpcmoe.slots import Placements
from hpcmoe.spec import ModelSpec


def place(model: ModelSpec, ranks: int, job: Job | None = None) -> Placements:
    """Which rank holds which expert, in every layer, or which group of ranks, where experts are cut.

    Raises `InputError` where the job's plan is not for it, `JobError` where experts cannot be cut so.
    """
    if job:
        _check_team(model, ranks, job.parallel.attention_tensor)
    shards = job.parallel.expert_tensor if job else 1
    if shards == 1 or not model.moe:
        return _whole(model, ranks, job, "ranks")
    if ranks % shards:
        raise JobError(f"parallel.expert_tensor = {shards}: {ranks} ranks are no groups of {shards}: start a multiple "
                       f"of {shards}, or set parallel.expert_tensor = 1")
    if model.moe.hidden < shards:
        raise JobError(f"parallel.expert_tensor = {shards}: experts of {model.name} are {model.moe.hidden} wide, and "
                       f"cannot be cut into more parts: set parallel.expert_tensor = {model.moe.hidden} or less")
    whole = _whole(model, ranks // shards, job, f"groups of {shards} ranks")
    cut = {id(placement): placement.cut(shards) for placement in whole}
    return [cut[id(placement)] for placement in whole]


def _check_team(model: ModelSpec, ranks: int, team: int) -> None:
    """Raises `JobError` where heads cannot be split over teams of so many ranks."""
    words = f"parallel.attention_tensor = {team}"
    if ranks % team:
        raise JobError(f"{words}: {ranks} ranks are no teams of {team}: start a multiple of {team}, or set "
                       "parallel.attention_tensor = 1")
    if model.attention.heads < team:
        raise JobError(f"{words}: {model.name} has {model.attention.heads} heads only: set it to that or less")
    if team > 1 and model.attention.qk_norm == "full":
        raise JobError(f"{words}: {model.name} norms the queries of all heads together, which a rank with some of them "
                       "cannot: set it to 1")


def _whole(model: ModelSpec, ranks: int, job: Job | None, what: str) -> Placements:
    """As `place`, of whole experts; `what` the ranks are."""
    if job and job.parallel.plan and model.moe:
        each = " of each independent group" if job.parallel.data > 1 else ""
        return _planned(model, ranks, Path(job.parallel.plan), what + each)
    spare = job and job.balance.mode == "replicas" and ranks > model.experts > 0
    return [(repeated if spare else linear)(model.experts, ranks)] * model.layers


def group_size(ranks: int, job: Job) -> int:
    """Ranks of each of the job's independent groups. Raises `JobError` where they cannot be of one size."""
    data = job.parallel.data
    if ranks % data:
        raise JobError(f"parallel.data = {data}: {ranks} ranks are no {data} independent groups of one size: start a "
                       f"multiple of {data}, or set another parallel.data")
    return ranks // data


def _planned(model: ModelSpec, ranks: int, path: Path, what: str) -> Placements:
    found = plan.read(path)
    pairs = {what: (len(found.node), ranks), "layers": (len(found.placements), model.layers),
             "experts": (found.experts, model.experts), "model": (found.model, model.name)}
    differ = [f"{what}: {there} there, {here} here" for what, (there, here) in pairs.items() if there != here]
    if differ:
        raise InputError(f"plan {path} is not for this job ({'; '.join(differ)}): run hpcmoe plan again, or leave out "
                         "parallel.plan")
    for layer in model.moe_layers:
        if not len(found.placements[layer].rank):
            raise InputError(f"plan {path} holds no experts in layer {layer}, which has some: run hpcmoe plan again")
    return found.placements
