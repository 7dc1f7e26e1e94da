"""Whole models on GPUs, on any number of ranks: against the NumPy engine, with the same choice of experts."""

from dataclasses import replace

import numpy as np
import pytest
from models import VARIANTS, batch
from mpi4py import MPI
from rig import COURSES, GOLDENS, HOLDERS, Course, Rig, golden

from hpcmoe.array import narrow, widen
from hpcmoe.convert.huggingface import HuggingFaceCheckpoint
from hpcmoe.engine import segments
from hpcmoe.exchange.lane import Way
from hpcmoe.files.drawn import Drawn
from hpcmoe.kernels import rows
from hpcmoe.spec import Latent

pytestmark = [pytest.mark.gpu, pytest.mark.mpi]
FAMILIES = ["mixtral", "mixtral_window", "qwen2_moe", "qwen3_moe", "olmoe", "seedlike", "deepseek_v2",
            "deepseek_v2_lite", "deepseek_v3", "glm4_moe", "glm4_moe_plain", "gpt_oss"]
NEAR = 1e-2
"""Relative error of logits against float32, as norms,"""
SLACK = 1.25
"""or in parts of the error that NumPy's engine makes in bfloat16: tiny models of random weights lose 1 to 2 %."""


@pytest.fixture
def routes(monkeypatch):
    """The choices of NumPy's engine in float32, then those that others are to follow, and which of a GPU's were equal.
    """
    from hpcmoe.device.graph import Graphs
    from hpcmoe.engine import blocks
    kept, said, same = [], [], []
    choose, gate = blocks.choose, segments.gate

    def follow_numpy(*arguments):
        if said:
            return said.pop(0)
        kept.append(gate(*arguments))
        return kept[-1]

    def follow(moe, logits, bias, route, load, sample, added):
        choose(moe, logits, bias, route, load, sample, added)
        want, T = said.pop(0), len(logits)
        same.extend((np.sort(route.expert[:T].get()) == np.sort(want.expert)).all(axis=1))
        route.expert[:T], route.weight[:T] = blocks.cupy.asarray(want.expert), blocks.cupy.asarray(want.weight)

    monkeypatch.setattr(segments, "gate", follow_numpy)
    monkeypatch.setattr(blocks, "choose", follow)
    monkeypatch.setattr(Graphs, "run", lambda self, key, work: work())  # `follow` waits
    return kept, said, same


class Rounded:
    """A model whose weights are bfloat16's, computed in float32."""

    def __init__(self, source) -> None:
        self.spec, self._source = source.spec, source

    def blocks(self, tensor):
        """See `files.model.Source`."""
        return (widen(narrow(block)) for block in self._source.blocks(tensor))


def forward(comm, source, pieces, dtype="float32", **more) -> np.ndarray:
    """Logits of some steps of this rank's pieces, one after another."""
    with Rig(comm, source, dtype, **more) as rig:
        return np.concatenate([rig.forward(batch(*step)).logits for step in pieces])


def compare(comm, source, pieces, routes, **more) -> list[str]:
    """What is wrong with the GPU's logits and choices."""
    kept, said, same = routes
    want = forward(comm, Rounded(source), pieces)
    said += kept
    numpy = forward(comm, source, pieces, "bfloat16")
    said += kept
    got = forward(comm, source, pieces, device=True, **more)
    sums = np.array([np.square(part, dtype=np.float64).sum() for part in (want, got - want, numpy - want)])
    size, ours, theirs = np.sqrt(comm.allreduce(sums))
    ours, theirs = ours / size, theirs / size
    problems = [f"relative error {ours:.1e}, NumPy's {theirs:.1e}"] if not ours <= max(NEAR, SLACK * theirs) else []
    alike, chosen = comm.allreduce(np.array([np.sum(same), len(same)]))  # a rank may have but a few
    return problems + ([f"chose as NumPy did in {alike / chosen:.0%} of {chosen:.0f}"] if alike < 0.9 * chosen else [])


@pytest.mark.parametrize("family", FAMILIES)
def test_families(comm, everywhere, routes, family):
    found, prompts = golden(family)
    mine = [i for i in range(len(prompts)) if i % comm.size == comm.rank]
    steps = [[(i, 0, prompts[i]) for i in mine]] + [
        [(i, len(prompts[i]) + step, [found[f"tokens_{i}"][step]]) for i in mine] for step in range(3)]
    everywhere(compare(comm, HuggingFaceCheckpoint(GOLDENS / family), steps, routes))


def even(spec):
    """As wide as rows of 8 values ask for."""
    return replace(spec, moe=replace(spec.moe, shared_hidden=24)) if spec.moe and spec.moe.shared_hidden else spec


WIDE = {
    "wide latent": replace(VARIANTS["latent queries, yarn"], attention=replace(
        VARIANTS["latent queries, yarn"].attention, head_dim=32, latent=Latent(512, 64, 16, 24))),
    "wide sinks": replace(VARIANTS["sinks and biases"], attention=replace(
        VARIANTS["sinks and biases"].attention, head_dim=64, rotary_dim=32))}
"""As the kernels that are fast want them."""


@pytest.mark.parametrize("name", [*VARIANTS, *WIDE])
def test_variants(comm, everywhere, routes, name):
    """Rank 1 has no sequence. Spans that attention takes one by one, and long ones, with and without a past."""
    tokens = np.random.default_rng(comm.rank).integers(0, 97, 40 + comm.rank % 5)
    steps = [[(2, a, tokens[a:b])] if comm.rank != 1 else []
             for a, b in ((0, 4), (4, 5), (5, 6), (6, 9), (9, 30), (30, len(tokens)))]
    steps[4] += [(1, 0, tokens[:20]), (0, 0, tokens[:3])] if comm.rank != 1 else []
    everywhere(compare(comm, Drawn(even((VARIANTS | WIDE)[name]), seed=3), steps, routes))


@pytest.mark.parametrize("holders", HOLDERS)
@pytest.mark.parametrize("shards", [2, 4])
@pytest.mark.parametrize("name", ["shared", "sinks and biases"])
def test_shards(comm, everywhere, routes, name, shards, holders):
    """Parts of answers are added up as NumPy's engine does; on 4 ranks and more some have several slots."""
    spec = even(VARIANTS[name])
    spec = replace(spec, moe=replace(spec.moe, hidden=32))
    if comm.size % shards:
        pytest.skip(f"{comm.size} ranks are no groups of {shards}")
    tokens = np.random.default_rng(comm.rank).integers(0, 97, 9 + comm.rank % 5)
    steps = [[(2, a, tokens[a:b])] if comm.rank != 1 else [] for a, b in ((0, 4), (4, 5), (5, 6), (6, len(tokens)))]
    everywhere(compare(comm, Drawn(spec, seed=3), steps, routes, shards=shards))


def test_shards_along_every_course_give_equal_bits(comm, everywhere):
    """With `compute.reproducible`: in two hops, too, whoever holds the experts; and on one pair of ranks."""
    if comm.size % 2:
        pytest.skip(f"{comm.size} ranks are no pairs")
    spec = replace(VARIANTS["sigmoid groups"], moe=replace(VARIANTS["sigmoid groups"].moe, hidden=32))
    pair = comm.Split(comm.rank // 2)
    source, rng = Drawn(spec, seed=3), np.random.default_rng(comm.rank)
    prompts = [rng.integers(0, 97, 3 + 5 * slot) for slot in range(4)]
    steps = [[(slot, 0, p) for slot, p in enumerate(prompts)], [(slot, len(p), [5]) for slot, p in enumerate(prompts)]]
    courses = [*COURSES[::2], Course("serial", Way(), True)]
    rows.compute_alone(True)
    try:
        alone = forward(pair, source, steps, device=True, shards=2)
        found = [forward(comm, source, steps, device=True, shards=2, course=course, holders=HOLDERS[n % 4])
                 for n, course in enumerate(courses)]
    finally:
        rows.compute_alone(False)
    everywhere([f"{course}: other bits" for course, got in zip(courses, found) if not np.array_equal(got, alone)])


def team_of(comm, size: int) -> int:
    """Skips where the ranks are no teams of so many."""
    if comm.size % size:
        pytest.skip(f"{comm.size} ranks are no teams of {size}")
    return size


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("name", ["tiny", "dense in between", "latent queries, yarn", "sinks and biases", *WIDE])
def test_teams(comm, everywhere, routes, name, size):
    """Heads over teams of ranks; rank 1 has no sequence."""
    tokens = np.random.default_rng(comm.rank).integers(0, 97, 40 + comm.rank % 5)
    steps = [[(2, a, tokens[a:b])] if comm.rank != 1 else []
             for a, b in ((0, 4), (4, 5), (5, 6), (6, 9), (9, 30), (30, len(tokens)))]
    source = Drawn(even((VARIANTS | WIDE)[name]), seed=3)
    everywhere(compare(comm, source, steps, routes, team=team_of(comm, size)))


@pytest.mark.parametrize("name", ["tiny", "dense in between", "sinks and biases", "wide latent"])
def test_teams_give_equal_bits_by_any_course_and_by_graphs(comm, everywhere, monkeypatch, name):
    from hpcmoe.device.graph import Graphs
    source, size, bits = Drawn(even((VARIANTS | WIDE)[name]), seed=3), team_of(comm, 2), []
    steps = [[batch((slot, at, [slot + at])) for slot in (0, 1)] for at in range(5)]

    def outcomes(course: Course) -> bytes:
        with Rig(comm, source, course=course, micro_batches=2, device=True, team=size) as rig:
            return b"".join(outcome.logits.tobytes() for step in steps for outcome in rig.step(step))
    for course in COURSES:
        bits.append(outcomes(course))
    monkeypatch.setattr(Graphs, "run", lambda self, key, work: work())
    bits.append(outcomes(COURSES[0]))
    everywhere([f"run {n} gives other bits" for n, some in enumerate(bits) if some != bits[0]])


@pytest.mark.parametrize("name", ["tiny", "sigmoid groups", "sinks and biases", "wide latent"])
def test_courses_give_equal_bits(comm, everywhere, name):
    """Mode, transport and schedule have no part in the result, at a number of ranks and micro-batches."""
    source, rng = Drawn(even((VARIANTS | WIDE)[name]), seed=3), np.random.default_rng(comm.rank)
    prompts = [rng.integers(0, 97, 3 + (slot + comm.rank) % 7) for slot in range(4)]
    first = [batch(*((slot, 0, prompts[slot]) for slot in part)) for part in ((0, 1), (2, 3))]
    then = [batch(*((slot, len(prompts[slot]), [slot]) for slot in part)) for part in ((0, 1), (2, 3))]
    bits = []
    for course in COURSES:
        with Rig(comm, source, course=course, micro_batches=2, device=True) as rig:
            outcomes = [outcome for step in (first, then, then, then) for outcome in rig.step(step)]
        bits.append(b"".join(outcome.logits.tobytes() for outcome in outcomes))
    everywhere([f"{course} gives other bits" for course, some in zip(COURSES, bits) if some != bits[0]])


@pytest.mark.parametrize("name", ["tiny", "sigmoid groups", "one expert", "latent", "sinks and biases", *WIDE])
def test_graphs_give_equal_bits(comm, everywhere, monkeypatch, name):
    """The first time launch by launch, the second time captured, then as graphs: sequences that grow by one token."""
    from hpcmoe.device.graph import Graphs
    comm, spec = MPI.COMM_SELF if name == "one expert" else comm, even((VARIANTS | WIDE)[name])  # its rows stay
    prompts = [np.random.default_rng(slot).integers(0, 97, 3 + 9 * slot) for slot in range(3)]
    steps = [[(slot, 0, p) for slot, p in enumerate(prompts)]]
    steps += [[(slot, len(p) + more, [more]) for slot, p in enumerate(prompts)] for more in range(5)]
    by_graph, launched, run = forward(comm, Drawn(spec, seed=3), steps, device=True), [], Graphs.run
    monkeypatch.setattr(Graphs, "run", lambda self, key, work: launched.append(key) or work())
    singly = forward(comm, Drawn(spec, seed=3), steps, device=True)
    monkeypatch.setattr(Graphs, "run", run)
    everywhere([f"{np.mean(by_graph != singly):.0%} of the logits differ"] * (not np.array_equal(by_graph, singly))
               + ["no graphs"] * (not launched))


@pytest.mark.parametrize("name", ["sigmoid groups", "latent", "sinks and biases", *WIDE])
def test_reproducible_bits_at_any_number_of_ranks(comm, everywhere, name):
    """As alone, each rank with its own sequences."""
    source, rng = Drawn(even((VARIANTS | WIDE)[name]), seed=3), np.random.default_rng(comm.rank)
    prompts = [rng.integers(0, 97, 3 + 5 * slot) for slot in range(4)]
    steps = [[(slot, 0, p) for slot, p in enumerate(prompts)], [(slot, len(p), [5]) for slot, p in enumerate(prompts)]]
    rows.compute_alone(True)
    try:
        together, alone = (forward(some, source, steps, device=True) for some in (comm, MPI.COMM_SELF))
        single = np.concatenate([forward(MPI.COMM_SELF, source, [[step[2]] for step in steps], device=True)])
    finally:
        rows.compute_alone(False)
    first = sum(map(len, prompts[:2]))
    problems = [] if np.array_equal(together, alone) else [f"{np.mean(together != alone):.0%} of the logits differ"]
    own = np.concatenate([alone[first:first + len(prompts[2])], alone[-2:-1]])
    everywhere(problems + ([] if np.array_equal(single, own) else ["a sequence alone has other bits"]))


@pytest.mark.parametrize("holders", HOLDERS[1:])
def test_whoever_holds_the_experts_bits_are_the_same(comm, everywhere, holders):
    """With as many experts as ranks have room for, so that some ranks are spare, or have several slots."""
    source, rng = Drawn(even(VARIANTS["sigmoid groups"]), seed=3), np.random.default_rng(comm.rank)
    prompts = [rng.integers(0, 97, 3 + 5 * slot) for slot in range(4)]
    steps = [[(slot, 0, p) for slot, p in enumerate(prompts)]]
    steps += [[(slot, len(p) + more, [5 + more]) for slot, p in enumerate(prompts)] for more in range(4)]
    rows.compute_alone(True)
    try:
        plain, other = (forward(comm, source, steps, device=True, holders=how) for how in (HOLDERS[0], holders))
    finally:
        rows.compute_alone(False)
    everywhere([] if np.array_equal(plain, other) else [f"{np.mean(plain != other):.0%} of the logits differ"])


@pytest.mark.parametrize("mode", ["alltoallv", "persistent"])
@pytest.mark.parametrize("holders", HOLDERS)
def test_two_hops_give_equal_bits(comm, everywhere, holders, mode):
    """On two nodes of half the ranks each, as if there were; both micro-batches under way at once."""
    source, rng = Drawn(even(VARIANTS["sigmoid groups"]), seed=3), np.random.default_rng(comm.rank)
    prompts = [rng.integers(0, 97, 3 + (slot + comm.rank) % 7) for slot in range(4)]
    first = [batch(*((slot, 0, prompts[slot]) for slot in part)) for part in ((0, 1), (2, 3))]
    then = [batch(*((slot, len(prompts[slot]), [slot]) for slot in part)) for part in ((0, 1), (2, 3))]
    bits = []
    for hops in (False, True):
        course = Course("overlapped", Way(mode), hops)
        with Rig(comm, source, course=course, micro_batches=2, device=True, holders=holders) as rig:
            outcomes = [outcome for step in (first, then, then, then) for outcome in rig.step(step)]
        bits.append(b"".join(outcome.logits.tobytes() for outcome in outcomes))
    everywhere([] if bits[0] == bits[1] else ["other bits"])


def test_sums_in_the_nodes_are_near(comm, everywhere):
    """`exchange.presum`: within the rounding of one more sum, but for the few tokens that it sends to other experts."""
    source, rng = Drawn(even(VARIANTS["sigmoid groups"]), seed=3), np.random.default_rng(comm.rank)
    steps = [[(slot, 0, rng.integers(0, 97, 3 + 5 * slot)) for slot in range(4)]]
    plain, summed = (forward(comm, source, steps, device=True, course=Course("serial", Way(), True), presum=presum)
                     for presum in (False, True))
    far = np.median(np.sqrt(np.square(summed - plain).mean(axis=1) / np.square(plain).mean(axis=1)))
    everywhere([f"relative difference {far:.1e}"] * (not far < 0.02))
