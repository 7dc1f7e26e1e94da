"""Attention whose heads are split over teams of ranks: against the oracle, transformers, and whole attention."""

import numpy as np
import pytest
from models import VARIANTS, batch
from rig import COURSES, GOLDENS, Rig, golden

from hpcmoe import reference
from hpcmoe.convert.huggingface import HuggingFaceCheckpoint
from hpcmoe.files.drawn import Drawn
from hpcmoe.kernels.rows import compute_alone

pytestmark = pytest.mark.mpi
CLOSE = 5e-5
"""Of the standard deviation of the logits."""
SPLIT = [name for name, model in VARIANTS.items() if model.attention.qk_norm != "full"]


def teams(comm) -> list[int]:
    """Sizes of teams that the ranks can be cut into, four teams at most; heads of the tiny models are 4."""
    return [size for size in (2, 4) if comm.size % size == 0 and comm.size <= 4 * size]


def tokens_of(rank: int, vocabulary: int) -> np.ndarray:
    """A sequence of its own length on each rank; rank 1 has none."""
    found = np.random.default_rng(rank).integers(0, vocabulary, 9 + rank % 5)
    return found[:0] if rank == 1 else found


def pieces(rig: Rig, tokens: np.ndarray):
    """A sequence in pieces of 4, 1 and 1 tokens, and the rest."""
    cuts = [(0, 4), (4, 5), (5, 6), (6, len(tokens))]
    return [rig.forward(batch((2, a, tokens[a:b])) if len(tokens) else batch()) for a, b in cuts]


@pytest.mark.many_ranks("tiny", "latent", "sinks and biases")
@pytest.mark.parametrize("name", SPLIT)
def test_prefill_and_decode_equal_the_oracle(comm, everywhere, name):
    model, problems = Drawn(VARIANTS[name], seed=3), []
    tokens = tokens_of(comm.rank, model.spec.vocabulary)
    want = reference.logits(model.spec, reference.reader(model), tokens) if len(tokens) else None
    for team in teams(comm):
        with Rig(comm, model, team=team) as rig:
            logits = np.concatenate([outcome.logits for outcome in pieces(rig, tokens)])
        if want is not None and np.abs(logits - want).max() > CLOSE * want.std():
            problems.append(f"{name}, teams of {team}: {np.abs(logits - want).max() / want.std():.1e} apart")
    everywhere(problems)


@pytest.mark.many_ranks("deepseek_v3", "gpt_oss")
@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "deepseek_v2_lite", "deepseek_v3", "glm4_moe", "gpt_oss"])
def test_logits_and_tokens_equal_those_of_transformers(comm, everywhere, family):
    found, prompts = golden(family)
    mine, problems = [i for i in range(len(prompts)) if i % comm.size == comm.rank], []
    for team in teams(comm):
        with Rig(comm, HuggingFaceCheckpoint(GOLDENS / family), team=team) as rig:
            got = {i: [] for i in mine}
            for step in range(1 + len(found["tokens_0"])):
                parts = [(i, 0, prompts[i]) if not step else
                         (i, len(prompts[i]) + step - 1, [found[f"tokens_{i}"][step - 1]]) for i in mine]
                logits = rig.forward(batch(*parts)).logits
                for i, rows in zip(mine, np.split(logits, np.cumsum([len(part[2]) for part in parts])[:-1])):
                    got[i].append(rows)
        for i in mine:
            logits, want = np.concatenate(got[i]), found[f"logits32_{i}"]
            if (far := np.abs(logits - want).max() / want.std()) > CLOSE:
                problems.append(f"{family}, prompt {i}, teams of {team}: {far:.1e} apart")
            if logits[len(prompts[i]) - 1:-1].argmax(axis=1).tolist() != found[f"tokens_{i}"].tolist():
                problems.append(f"{family}, prompt {i}, teams of {team}: other greedy tokens")
    everywhere(problems)


@pytest.mark.many_ranks(str(COURSES[2]), str(COURSES[-1]))
@pytest.mark.parametrize("course", [COURSES[2], *COURSES[-3:]], ids=str)
def test_bits_do_not_depend_on_how_rows_travel(comm, everywhere, course):
    """Two micro-batches, in which some ranks have nothing."""
    model, problems = Drawn(VARIANTS["latent"], seed=3), []
    tokens = tokens_of(comm.rank, model.spec.vocabulary)
    both = [batch((0, 0, tokens)) if len(tokens) else batch(), batch((1, 0, [comm.rank])) if comm.rank % 3 else batch()]
    for team in teams(comm):
        found = []
        for each in (COURSES[0], course):
            with Rig(comm, model, "bfloat16", course=each, micro_batches=2, team=team) as rig:
                found.append(np.concatenate([outcome.logits for outcome in rig.step(both)]))
        if not np.array_equal(*found):
            problems.append(f"{course}, teams of {team}: other bits")
    everywhere(problems)


def test_bits_do_not_depend_on_who_has_which_sequence_where_rows_are_computed_alone(comm, everywhere):
    model, problems = Drawn(VARIANTS["sinks and biases"], seed=3), []
    sequences = [tokens_of(n, model.spec.vocabulary) for n in (0, 2, 3, 4)]
    compute_alone(True)
    try:
        for team in teams(comm):
            results = []
            for shift in (0, 1):
                mine = [n for n in range(4) if (n + shift) % comm.size == comm.rank]
                with Rig(comm, model, "bfloat16", team=team) as rig:
                    logits = rig.forward(batch(*((slot, 0, sequences[n]) for slot, n in enumerate(mine)))).logits
                ends = np.cumsum([len(sequences[n]) for n in mine])[:-1]
                all_ = comm.allgather(dict(zip(mine, np.split(logits, ends) if mine else [])))
                results.append({n: rows for part in all_ for n, rows in part.items()})
            if any(not np.array_equal(results[0][n], results[1][n]) for n in range(4)):
                problems.append(f"teams of {team}: other bits")
    finally:
        compute_alone(False)
    everywhere(problems)


@pytest.mark.parametrize("dtype, size", [("float32", 4), ("bfloat16", 2)])
def test_bytes_are_those_of_the_formula(comm, everywhere, dtype, size):
    """Of a model without experts: see `exchange.team`."""
    model, problems = Drawn(VARIANTS["no experts"], seed=3), []
    H, rows = model.spec.hidden, [len(tokens_of(rank, 9)) for rank in range(comm.size)]
    for team in teams(comm):
        with Rig(comm, model, dtype, team=team) as rig:
            rig.forward(batch((0, 0, tokens_of(comm.rank, 9))) if rows[comm.rank] else batch())
            sent = rig.segments.clock.read_traffic().bytes
        first = comm.rank // team * team
        others = sum(rows[first:first + team]) - rows[comm.rank]
        want = (team - 1) * rows[comm.rank] * H * size + others * H * 4
        own = rows[comm.rank] * H * (size + 4)
        if sent.tolist() != [[own, want, 0]] * model.spec.layers:
            problems.append(f"teams of {team}: {sent.tolist()}, not {[own, want, 0]}")
    everywhere(problems)
