"""Experts in tensor shards on real ranks: against transformers, the oracle, and each other."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest
from models import TINY, VARIANTS, batch
from mpi4py import MPI
from rig import COURSES, GOLDENS, HOLDERS, Course, Rig, golden
from routings import Example, Forced
from test_model import CLOSE, FAMILIES, apart, through_cache

from hpcmoe import reference
from hpcmoe.array import narrow, widen
from hpcmoe.convert.huggingface import HuggingFaceCheckpoint
from hpcmoe.engine import segments
from hpcmoe.engine.batch import split
from hpcmoe.files.drawn import Drawn
from hpcmoe.kernels import rows

pytestmark = pytest.mark.mpi
UNEVEN = replace(TINY, moe=replace(TINY.moe, hidden=23, shared_hidden=20))
"""Experts whose width no number of shards divides."""
WAYS = [Course(), Course("overlapped", COURSES[3].way), Course("serial", COURSES[2].way, hops=True),
        Course("overlapped", COURSES[5].way, hops=True)]
"""Flat and in two hops, by exact counts and by persistent requests, from the host's memory and staged."""


def groups_of(comm, shards: int) -> None:
    """Leaves out what the ranks cannot be grouped for."""
    if comm.size % shards:
        pytest.skip(f"{comm.size} ranks are no groups of {shards}")


@pytest.mark.many_ranks("mixtral-4", "deepseek_v3-2", "gpt_oss-4")
@pytest.mark.parametrize("shards", [2, 4])
@pytest.mark.parametrize("family", FAMILIES)
def test_float32_logits_equal_those_of_transformers(comm, everywhere, family, shards):
    groups_of(comm, shards)
    found, prompts = golden(family)
    tokens = [found[f"tokens_{i}"] for i in range(len(prompts))]
    with Rig(comm, HuggingFaceCheckpoint(GOLDENS / family), shards=shards) as rig:
        got = through_cache(rig, comm, prompts, tokens)
    problems = [f"{family}, prompt {i}: {apart(logits, found[f'logits32_{i}']):.1e} apart" for i, logits in got.items()
                if apart(logits, found[f"logits32_{i}"]) > CLOSE
                or logits[len(prompts[i]) - 1:-1].argmax(axis=1).tolist() != tokens[i].tolist()]
    everywhere(problems)


@pytest.mark.many_ranks("mixtral")
@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe"])
def test_bfloat16_logits_equal_those_of_transformers(comm, everywhere, family):
    """As nearly as those of whole experts: each answer is rounded once, when its parts are together."""
    groups_of(comm, 2)
    found, prompts = golden(family)
    tokens = [found[f"tokens_{i}"] for i in range(len(prompts))]
    with Rig(comm, HuggingFaceCheckpoint(GOLDENS / family), "bfloat16", shards=2) as rig:
        got = through_cache(rig, comm, prompts, tokens)
    same = {i: (narrow(logits) == found[f"logits16_{i}"]).mean() for i, logits in got.items()}
    far = {i: np.abs(logits - widen(found[f"logits16_{i}"])).max() / logits.std() for i, logits in got.items()}
    same, far = ({i: v for part in comm.allgather(values) for i, v in part.items()} for values in (same, far))
    everywhere([f"identical {same}, apart {far}"] if np.median(list(same.values())) < 0.999 or max(far.values()) > 0.1
               else [])


@pytest.mark.many_ranks(*(f"{2 + 2 * (n % 2)}-{holders}-{way}" for n, (holders, way) in enumerate(zip(HOLDERS, WAYS))))
@pytest.mark.parametrize("course", WAYS, ids=str)
@pytest.mark.parametrize("holders", HOLDERS)
@pytest.mark.parametrize("shards", [2, 4])
def test_every_way_equals_the_oracle(comm, everywhere, shards, holders, course):
    """Prefill and decode, two micro-batches, uneven shards; rank 1 has no tokens."""
    groups_of(comm, shards)
    model = Drawn(UNEVEN, seed=3)
    tokens = np.random.default_rng(comm.rank).integers(0, UNEVEN.vocabulary, 0 if comm.rank == 1 else 7)
    with Rig(comm, model, course=course, micro_batches=2, holders=holders, shards=shards) as rig:
        got = []
        for a, b in ((0, 6), (6, 7)):
            both = split(batch((2, a, tokens[a:b])) if len(tokens) else batch(), 2)
            got += [outcome.logits for outcome in rig.step(both)]
    problems = []
    if len(tokens):
        want = reference.logits(model.spec, reference.reader(model), tokens)
        far = apart(np.concatenate(got), want)
        problems = [f"{far:.1e} apart"] if far > CLOSE else []
    everywhere(problems)


@pytest.mark.many_ranks("one expert")
@pytest.mark.parametrize("name", ["all experts", "one expert", "sinks and biases"])
def test_variants_equal_the_oracle(comm, everywhere, name):
    groups_of(comm, 2)
    model, tokens = Drawn(VARIANTS[name], seed=3), np.random.default_rng(comm.rank).integers(0, 97, 5)
    with Rig(comm, model, shards=2) as rig:
        got = rig.forward(batch((0, 0, tokens))).logits
    far = apart(got, reference.logits(model.spec, reference.reader(model), tokens))
    everywhere([f"{far:.1e} apart"] if far > CLOSE else [])


@pytest.mark.many_ranks("2-bfloat16", "4-float32")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shards", [2, 4])
def test_bytes_are_those_of_the_formula(comm, everywhere, monkeypatch, dtype, shards):
    """K * t rows of H there, and K * t of float32 back, for each token, where no rank has two experts; those that stay
    on their rank and those that leave, all tokens to the same experts or to any; as in `exchange.route`."""
    groups_of(comm, shards)
    E, K, T, H = comm.size // shards, min(2, comm.size // shards), 5, TINY.hidden
    spec, problems = replace(TINY, layers=2, moe=replace(TINY.moe, experts=E, top_k=K)), []
    item = {"float32": 4, "bfloat16": 2}[dtype]
    for skew in ("even", "one"):
        monkeypatch.setattr(segments, "gate", forced := Forced(Example((), K, skew)))
        with Rig(comm, Drawn(spec, 1), dtype, shards=shards) as rig:
            outcome = rig.forward(batch((0, 0, list(range(T)))))
            moved = rig.segments.clock.read_traffic().bytes.sum(axis=0)
        chosen = np.concatenate(comm.allgather(np.concatenate([route.expert for _, route in forced.seen])))
        mine = np.concatenate([route.expert for _, route in forced.seen])
        stay = int((mine == comm.rank // shards).sum())  # to this rank's own shard
        answered = int((chosen == comm.rank // shards).sum())  # by it
        there, back = T * K * shards * H * item, answered * H * 4
        own = stay * H * (item + 4)
        if moved.tolist() != [own, there + back - own, 0]:
            problems.append(f"{skew}: {moved} bytes, {own} of {there} + {back} stay")
        if outcome.computed[1] != answered or outcome.load[1].sum() != T * K:
            problems.append(f"{skew}: {outcome.computed[1]} rows computed, {answered} asked for")
        moved = comm.allreduce(moved.sum())
        if moved != comm.size * T * K * shards * H * (item + 4):
            problems.append(f"{skew}: {moved} bytes in all")
    everywhere(problems)


@pytest.mark.parametrize("shards", [2, 4])
def test_bits_are_the_same_at_any_number_of_ranks_and_groups(comm, everywhere, monkeypatch, shards):
    """With `compute.reproducible`: on one group of ranks and on more, by every way, whoever holds the experts."""
    groups_of(comm, shards)
    sizes = [size for size in (2, 4, 8, 16) if size % shards == 0 and size <= comm.size]
    plays = [*zip(sizes, ["in order"] * 4, [Course()] * 4), *zip(sizes[::-1][:2], HOLDERS[1:], WAYS[2:])]
    rows.compute_alone(True)
    try:
        found = [_digests(comm, shards, *play) for play in plays]
    finally:
        rows.compute_alone(False)
    everywhere([f"{play}: other bits" for play, bits in zip(plays, found) if bits != found[0]])


def _digests(comm, shards: int, size: int, holders: str, course: Course) -> dict[int, str]:
    """Of the logits of five sequences on the first `size` ranks."""
    some, found = comm.Split(0 if comm.rank < size else MPI.UNDEFINED), {}
    if some != MPI.COMM_NULL:
        tokens = {i: np.random.default_rng(i).integers(0, 97, 4 + 5 * i) for i in range(5) if i % size == some.rank}
        with Rig(some, Drawn(replace(UNEVEN, hidden=128), 5), "bfloat16", course=course, holders=holders,
                 shards=shards) as rig:
            logits = rig.forward(batch(*((i, 0, mine) for i, mine in tokens.items()))).logits
        ends = np.cumsum([len(mine) for mine in tokens.values()])[:-1]
        found = {i: hashlib.blake2b(part.tobytes()).hexdigest() for i, part in zip(tokens, np.split(logits, ends))}
        some.Free()
    return {i: digest for part in comm.allgather(found) for i, digest in part.items()}
