"""`verify`: a few prompts of a job through the program, through the slow reference, and through transformers."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from hpcmoe import array, launch, reference
from hpcmoe.config import Job
from hpcmoe.engine import device, inputs, layer, schedule
from hpcmoe.engine.batch import Sequences
from hpcmoe.engine.device import RankSegments
from hpcmoe.engine.memory import Sizes
from hpcmoe.engine.seats import place
from hpcmoe.errors import JobError
from hpcmoe.exchange.lane import Way
from hpcmoe.exchange.watch import Unwatched
from hpcmoe.files.model import Source
from hpcmoe.slots import held_by
from hpcmoe.types import Outcome

Judge = Callable[[np.ndarray], np.ndarray]
"""tokens `[n]` -> logits after each of them, `[n, V]`"""

CLOSE = {"float32": 5e-5, "bfloat16": 0.1}
"""How far logits may lie apart, in standard deviations."""


@dataclass(frozen=True)
class Comparison:
    """One prompt against one judge."""

    prompt: str
    judge: str
    tokens: int
    """greedy tokens behind the prompt"""
    apart: float
    """largest difference of the logits that chose them, in standard deviations of the judge's"""
    same: int
    """tokens that the judge would have chosen too"""
    close: bool


def verify(job: Job, count: int, new: int, checkpoint: Path | None) -> list[Comparison]:
    """The first `count` prompts, `new` greedy tokens each, in one process, without batches of several prompts.

    `checkpoint` is what the model file was converted from, for transformers. Raises `InputError`, `JobError`.
    """
    found = inputs.read(job)
    judges: dict[str, Judge] = {"reference": _reference(job, found)}
    if checkpoint:
        judges["transformers"] = transformers(checkpoint, job.compute.dtype)
    job = replace(job, mode="generate", generate=replace(job.generate, max_new_tokens=new, temperature=0.0))
    rows = range(min(count, len(found.prompts)))
    segments = _open(job, found.model, max(len(found.prompts[row]) for row in rows) + new)
    comparisons = []
    for row in rows:
        prompt = found.prompts[row]
        tokens, logits = _answer(segments, job, prompt)
        for name, judge in judges.items():
            want = judge(np.concatenate([prompt, tokens[:-1]]))[len(prompt) - 1:]
            apart = float(np.abs(logits - want).max() / want.std())
            same = int((want.argmax(axis=1) == tokens).sum())
            comparisons.append(Comparison(found.prompts.ids[row], name, len(tokens), apart, same,
                                          apart <= CLOSE[job.compute.dtype]))
    segments.free()
    return comparisons


def _open(job: Job, source: Source, length: int) -> RankSegments:
    """The whole model in this process, with room for one sequence."""
    from mpi4py import MPI
    placements, dtype = place(source.spec, 1), array.DTYPES[job.compute.dtype]
    held = device.load(source, held_by(placements, 0), dtype, "host")
    return device.open_segments(MPI.COMM_SELF, Unwatched(launch.spin), source.spec, held, placements,
                                Sizes(1, 0, length), job.generate, dtype, Way(), keep_logits=True)


def _answer(segments: RankSegments, job: Job, prompt: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Greedy tokens `[n]` behind a prompt and the logits `[n, V]` that chose them, through cache and exchange."""
    sequences = Sequences(segments.model, job, 1, len(prompt))
    sequences.admit(0, prompt)
    outcomes: list[Outcome] = []
    while sequences.active:
        batch = sequences.batch()
        outcomes += schedule.serial([layer.step(segments, batch)], segments.clock, segments.watch.idle,
                                    segments.watch.attend)
        sequences.advance(batch, outcomes[-1])
    return (np.concatenate([o.token for o in outcomes]),
            np.concatenate([o.logits for o in outcomes if o.logits is not None]))


def _reference(job: Job, found: inputs.Inputs) -> Judge:
    read = reference.reader(found.model, job.compute.dtype)
    return lambda tokens: reference.logits(found.model.spec, read, tokens, job.compute.dtype)


def transformers(checkpoint: Path, dtype: str) -> Judge:
    """The checkpoint in transformers, eager attention. Raises `JobError` where it is not installed."""
    try:
        import torch
        from transformers import AutoModelForCausalLM
    except ImportError as error:
        raise JobError(f"--checkpoint needs transformers ({error}): pip install torch transformers") from None
    folder, name = (checkpoint, None) if checkpoint.is_dir() else (checkpoint.parent, checkpoint.name)
    kind = getattr(torch, dtype)
    peer = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=kind, attn_implementation="eager")

    def judge(tokens: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return peer(torch.from_numpy(tokens.astype(np.int64))[None]).logits[0].float().numpy()
    return judge
