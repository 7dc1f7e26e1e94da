"""Groups of ranks that share one pool of prompts: the answers of one group, whoever deals them to whom."""

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from after import After
from models import TINY

from hpcmoe import config, launch, tables
from hpcmoe.engine import crew, dealer, generate
from hpcmoe.engine import job as life
from hpcmoe.files import parts, plan, prompts, results
from hpcmoe.kernels import rows
from hpcmoe.notice import Notice
from hpcmoe.report import plan as page

pytestmark = pytest.mark.mpi
LENGTHS = (1, 9, 3, 17, 1, 30, 2, 2, 5, 12, 1, 4, 4, 4, 1, 6, 2, 3, 8, 1)
NEW = 6


@pytest.fixture(scope="module")
def folder(comm, shared_tmp) -> Path:
    """Prompts, few and many, and a model."""
    shared = shared_tmp / "data"
    if comm.rank == 0:
        shared.mkdir()
        rng = np.random.default_rng(1)
        lists = [rng.integers(0, TINY.vocabulary, n).astype(np.int32) for n in LENGTHS]
        for count in (1, 3, len(lists)):
            prompts.write(shared / f"p{count}.h5", [f"p{i}" for i in range(count)], lists[:count])
        (shared / "tiny.toml").write_text(tables.dump(replace(TINY, eos=(5, 60))))
        (shared / "job.toml").write_text('model = "tiny.toml"\nprompts = "p20.h5"\noutput = "o.h5"\n')
    launch.meet(comm)
    return shared


def groups(comm) -> list[int]:
    """The values of `parallel.data` that fit the ranks, 1 first."""
    return [data for data in (1, 2, 4) if comm.size % data == 0]


def job(comm, folder: Path, output: str, *overrides: str, count: int = len(LENGTHS)) -> config.Job:
    """A reproducible job, small enough to need chunks of prompts and refilled slots."""
    settings = (f"output='{folder / output}'", f"prompts='{folder / f'p{count}.h5'}'", "schedule.max_sequences=2",
                "schedule.max_tokens=7", f"generate.max_new_tokens={NEW}", "compute.dtype=float32",
                "compute.reproducible=true", "generate.temperature=1.0", "exchange.mode=alltoallv")
    return comm.bcast(config.load(folder / "job.toml", settings + overrides) if comm.rank == 0 else None)


def run(made: config.Job, notice: Notice | None = None, traced: bool = False) -> life.End:
    """On all ranks."""
    world = launch.with_nodes(launch.start(), made.parallel.ranks_per_node)
    end, _ = life.run(world, made, overwrite=False, traced=traced, notice=notice)
    rows.compute_alone(False)
    launch.meet(world.comm)
    return end


def bits(made: config.Job) -> list[tuple]:
    """Of all answers."""
    return [(a.prompt, a.tokens.tobytes(), a.logprobs.tobytes(), a.stop) for a in results.answers(Path(made.output))]


@pytest.mark.many_ranks("generate-1", "score-20")
@pytest.mark.parametrize("count", [1, 3, len(LENGTHS)])
@pytest.mark.parametrize("mode", ["generate", "score"])
def test_the_output_has_the_same_bits_in_any_number_of_groups(comm, folder, everywhere, mode, count):
    """Fewer prompts than groups, too: then some have nothing to do."""
    found = []
    for data in groups(comm):
        made = job(comm, folder, f"same-{mode}-{count}-{data}.h5", f"mode={mode}", f"parallel.data={data}", count=count)
        assert run(made) is life.End.DONE
        found.append(made)
    everywhere([f"data = {made.parallel.data}: other bits" for made in found if bits(made) != bits(found[0])]
               if comm.rank == 0 else [])


WAYS = [("schedule.mode=overlapped", "exchange.mode=persistent"), ("exchange.mode=twohop", "parallel.ranks_per_node=2"),
        ("balance.replan_every=2", "balance.exact=true", "exchange.mode=auto"),
        ("balance.mode=replicas", "exchange.transport=staged")]


@pytest.mark.many_ranks(*map(" ".join, WAYS[1:3]))
@pytest.mark.parametrize("way", WAYS, ids=" ".join)
def test_ways_of_all_kinds_stay_within_a_group(comm, folder, everywhere, way):
    made = job(comm, folder, "plain-generate.h5")
    other = job(comm, folder, f"{'-'.join(way)}.h5", f"parallel.data={groups(comm)[-1]}", *way)
    run(made)
    run(other)
    everywhere(["other bits"] if comm.rank == 0 and bits(made) != bits(other) else [])


@pytest.mark.many_ranks("expert_tensor")
@pytest.mark.parametrize("tensor", ["expert_tensor", "attention_tensor"])
def test_shards_and_teams_lie_within_a_group(comm, folder, everywhere, tensor):
    """Their answers have the bits of one group that is split as they are."""
    if comm.size < 4:
        pytest.skip("needs two groups of two ranks")
    found = [job(comm, folder, f"{tensor}-{data}.h5", f"parallel.data={data}", f"parallel.{tensor}=2")
             for data in (1, 2)]
    for made in found:
        run(made)
    everywhere(["other bits"] if comm.rank == 0 and bits(found[0]) != bits(found[1]) else [])


@pytest.mark.many_ranks("generate")
@pytest.mark.parametrize("mode", ["generate", "score"])
def test_a_job_goes_on_in_another_number_of_groups(comm, folder, everywhere, capfd, mode):
    """Told to end on the first rank, on the last one, and on one in the middle; then with other groups, or none."""
    whole = job(comm, folder, f"plain-{mode}.h5", f"mode={mode}")
    run(whole)
    ends, problems, choices = [], [], groups(comm)
    for turn, who in enumerate((0, comm.size - 1, comm.size // 2)):
        again = job(comm, folder, f"disturbed-{mode}.h5", f"mode={mode}",
                    f"parallel.data={choices[(turn + 2) % len(choices)]}", f"schedule.max_sequences={1 + turn % 2}")
        ends.append(run(again, After(2) if comm.rank == who else None))
        said = capfd.readouterr().err
        if comm.rank == 0 and ends[-1] is life.End.CHECKPOINTED:
            done = sum(len(parts.read(path).answers) for path in parts.files(Path(again.output)))
            if f"rank {who}: SIGUSR1 came; checkpointed: {done} of {len(LENGTHS)} prompts are answered" not in said:
                problems.append(f"{done} are answered, rank {who} was told, and it said {said}")
    if ends[-1] is life.End.CHECKPOINTED:
        ends.append(run(again))
    problems += [] if life.End.CHECKPOINTED in ends and ends[-1] is life.End.DONE else [f"{ends}"]
    everywhere(problems + (["other bits"] if comm.rank == 0 and bits(whole) != bits(again) else []))


@contextmanager
def slow(ranks: range, rank: int, seconds: float) -> Iterator[None]:
    """Steps of some ranks take so much longer."""
    advance = generate.Sequences.advance

    def slowly(self, batch, outcome):
        time.sleep(seconds if rank in ranks else 0)
        return advance(self, batch, outcome)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generate.Sequences, "advance", slowly)
        yield


def by_group(output: Path, data: int) -> list[int]:
    """Answers of each group, from the parts."""
    found = Counter(part.group for part in map(parts.read, parts.files(output)) for _ in part.answers)
    return [found[group] for group in range(data)]


@pytest.mark.many_ranks
@pytest.mark.parametrize("late", ["first", "last"])
def test_a_slow_group_answers_fewer_prompts(comm, folder, everywhere, monkeypatch, late):
    """The dealer's own, or another one."""
    if comm.size < 2:
        pytest.skip("needs two groups")
    counted: list[int] = []
    packed = life.results.pack

    def pack(output, *rest):
        counted.extend(by_group(output, 2))
        packed(output, *rest)
    monkeypatch.setattr(life.results, "pack", pack)
    half = comm.size // 2
    ranks = range(half) if late == "first" else range(half, comm.size)
    made = job(comm, folder, f"slow-{late}.h5", "parallel.data=2", "schedule.max_sequences=1",
               "generate.ignore_eos=true")
    with slow(ranks, comm.rank, 0.1):
        run(made)
    problems = []
    if comm.rank == 0:
        mine, others = counted if late == "first" else counted[::-1]
        if (half <= 2 and not 3 * mine < 2 * others) or sum(counted) != len(LENGTHS):
            problems = [f"the slow one {mine}, the other {others}"]
    everywhere(problems)


class Counted:
    """A communicator that counts what is sent by it."""

    sent: list[tuple[int, int]]
    """(tag, bytes)"""

    def __init__(self, comm) -> None:
        self._comm, self.sent = comm, []

    def __getattr__(self, name: str):
        return getattr(self._comm, name)

    def Isend(self, buffer, to, tag):
        self.sent.append((tag, buffer.nbytes))
        return self._comm.Isend(buffer, to, tag)


@pytest.mark.many_ranks("generate")
@pytest.mark.parametrize("mode", ["generate", "score"])
def test_the_dealer_has_no_more_messages_than_it_says(comm, folder, everywhere, monkeypatch, mode):
    seen, granted = [], []
    opened, left = crew.open_pool, dealer.Dealer.leave

    def open_pool(*given):
        pool, between = opened(*given)
        if source := getattr(pool, "_source", None):
            source._comm = source._post._comm = Counted(between)
            seen.append(source._comm.sent)
        return pool, between

    def leave(self, stopped):
        left(self, stopped)
        granted.append(sum(heard.granted for first, heard in self._heard.items() if first))
    monkeypatch.setattr(crew, "open_pool", open_pool)
    monkeypatch.setattr(dealer.Dealer, "leave", leave)
    problems = []
    for data in groups(comm)[1:]:
        seen.clear()
        run(job(comm, folder, f"counted-{mode}-{data}.h5", f"mode={mode}", f"parallel.data={data}"))
        sent = [message for sent in comm.allgather([m for mine in seen for m in mine]) for message in sent]
        up, down = ([size for tag, size in sent if tag == which] for which in (dealer.UP, dealer.DOWN))
        if comm.rank == 0:
            p, q = granted[-1], len(up) - 2 * (data - 1)
            right = (q <= p + data - 1, set(up) <= {40}, len(down) == q + data - 1,
                     sum(down) == 8 * (p + 2 * (data - 1)))
            problems += [] if all(right) else [f"data = {data}: p {p}, q {q}, {right}"]
    everywhere(problems)


def test_the_file_tells_what_the_groups_did(comm, folder, everywhere):
    data = groups(comm)[-1]
    made = job(comm, folder, "told.h5", f"parallel.data={data}")
    run(made, traced=True)
    problems = []
    if comm.rank == 0:
        with h5py.File(made.output) as file:
            steps = results.steps(file, Path(made.output))
            generated = int(np.diff(file["tokens/offsets"]).sum())
            computed = sum(LENGTHS) + generated - len(LENGTHS)
            load = file["routing/load"][:]
            keys = list(zip(steps.attempt.tolist(), steps.group.tolist(), steps.step.tolist()))
            checks = {
                "groups": file.attrs["groups"] == data and set(steps.group.tolist()) == set(range(data)),
                "each step of each group once": len(set(keys)) == len(keys),
                "steps from 0": all(np.array_equal(steps.step[steps.group == g], np.arange((steps.group == g).sum()))
                                    for g in range(data)),
                "load": file["load"][:].sum(axis=1).tolist() == [0] + [computed * TINY.moe.top_k] * 3,
                "load by rank": load.shape[1] == comm.size and np.array_equal(load.sum(axis=1), file["load"][:]),
                "a group's rows stay there": np.array_equal(
                    load.sum(axis=2).reshape(len(load), data, -1).sum(axis=2),
                    file["routing/computed"][:].reshape(len(load), data, -1).sum(axis=2)),
                "tokens": steps.tokens.sum() == computed and steps.chosen.sum() == generated,
                "seconds": np.isclose(steps.seconds, max(steps.wall[steps.group == g].sum() for g in range(data))),
                "stages": (steps.mean.sum(axis=1) <= steps.wall * 1.001).all(),
                "average": np.allclose(steps.average, steps.mean.sum(axis=0) / data),
                "hosts": len(file["host"]) == comm.size == file.attrs["ranks"],
            }
            problems = [name for name, right in checks.items() if not right]
    everywhere(problems)


def test_a_plan_is_made_of_all_groups_and_for_one(comm, folder, everywhere, capsys):
    data = groups(comm)[-1]
    made = job(comm, folder, "traffic.h5", f"parallel.data={data}")
    run(made)
    if comm.rank == 0:
        page.make(Path(made.output), folder / "plan.h5", page.Asked("load", None, None, None, None, "flat", 1))
    launch.meet(comm)
    planned = job(comm, folder, "planned.h5", f"parallel.data={data}", f"parallel.plan='{folder / 'plan.h5'}'")
    run(planned)
    problems = []
    if comm.rank == 0:
        found = page.read(Path(made.output)).routing
        with h5py.File(made.output) as file:
            load = file["load"][:]
        problems += ["other bits"] if bits(made) != bits(planned) else []
        problems += ["other rows"] if not np.array_equal(found.load.sum(axis=1), load) else []
        if {found.load.shape[1], found.computed.shape[1], plan.read(folder / "plan.h5").ranks} != {comm.size // data}:
            problems.append(f"{found.load.shape}, {found.computed.shape}")
    everywhere(problems)


def test_other_numbers_of_ranks_are_refused(comm, folder, everywhere):
    made = job(comm, folder, "refused.h5", f"parallel.data={comm.size + 1}")
    with pytest.raises(launch.Agreed) as refused:
        life.run(launch.start(), made, overwrite=False)
    line = f"parallel.data = {comm.size + 1}: {comm.size} ranks are no {comm.size + 1} independent groups of one size"
    everywhere([] if refused.value.code == 2 and str(refused.value).startswith(line) else [str(refused.value)])


def test_each_group_has_a_bias_and_scores_a_part_of_the_prompts(comm, folder, everywhere):
    data = groups(comm)[-1]
    made = job(comm, folder, "biased.h5", f"parallel.data={data}", "compute.reproducible=false", "balance.mode=bias",
               "balance.rate=0.01", "generate.ignore_eos=true")
    run(made)
    with h5py.File(made.output) as file:
        bias = results.read(file, Path(made.output)).bias
    known = sum(LENGTHS) - len(LENGTHS)
    everywhere([] if bias and bias.tokens == known and bias.moved[1:].all() else [f"{bias}, {known} are known"])
