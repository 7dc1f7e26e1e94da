"""`probe` on real ranks: what works is found to work, what does not is not, and a run goes by it."""

from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from models import TINY

from hpcmoe import config, launch, tables
from hpcmoe.bench import cuts
from hpcmoe.bench import probe as bench
from hpcmoe.config import Exchange, Job
from hpcmoe.engine import ways
from hpcmoe.engine.seats import place
from hpcmoe.exchange import persistent
from hpcmoe.exchange.lane import Way
from hpcmoe.exchange.staged import Ferry
from hpcmoe.files import probe, prompts
from hpcmoe.files.probe import ENDED, WORKS, WRONG, Probe, Verdicts
from hpcmoe.report import probe as page
from hpcmoe.types import MODES, TRANSPORTS, Cuts, Speeds

pytestmark = pytest.mark.mpi
EVERYTHING = dict.fromkeys(product(TRANSPORTS, MODES), WORKS)
SPEEDS = Speeds(np.array([1.0, 2.0]), np.array([2.0, 2.0]), np.array([1.0, 3.0]))


@pytest.fixture
def world(comm):
    """This world, as a job sees it."""
    return launch.start()


@pytest.fixture
def job(comm, shared_tmp) -> Path:
    """A job, the same for all ranks."""
    path = shared_tmp / "probed.toml"
    if comm.rank == 0:
        (shared_tmp / "spec.toml").write_text(tables.dump(TINY))
        prompts.write(shared_tmp / "p.h5", ["a", "b"], [np.array([1, 2, 3], np.int32)] * 2)
        path.write_text('model = "spec.toml"\nprompts = "p.h5"\noutput = "out.h5"\nprobe = "probe.h5"\n')
    launch.meet(comm)
    return path


def test_every_transport_works(world, everywhere):
    said: list[str] = []
    found = bench.try_ways(world, 12, [], said.append, lambda works: None)
    everywhere([] if found == EVERYTHING and len(said) == 4 else [f"{found}, {said}"])


def test_rows_that_come_damaged_are_noticed(world, everywhere, monkeypatch):
    """On the last rank alone; all ranks must know."""
    whole = Ferry._land

    def damaged(self):
        arrived = self._piece.arrived
        whole(self)
        if world.rank == world.size - 1:
            arrived[-1:] ^= 1
    monkeypatch.setattr(Ferry, "_land", damaged)
    found = bench.try_ways(world, 12, [], lambda line: None, lambda works: None)
    right = {("device", "alltoallv"): WORKS, ("device", "persistent"): WORKS, ("staged", "alltoallv"): WRONG}
    everywhere([] if found == right else [f"{found}"])


def test_a_mode_that_fails_leaves_the_other(world, everywhere, monkeypatch):
    """A library whose persistent requests move nothing; on one rank there is nothing to move."""
    monkeypatch.setattr(persistent, "make_request", lambda *given: Idle())
    found = bench.try_ways(world, 12, [], lambda line: None, lambda verdicts: None)
    right = {way: WRONG if way[1] == "persistent" and world.size > 1 else WORKS for way in EVERYTHING}
    probed = Probe(world.hosts, "", 1, "", found)
    resolved = Job("m", "p", "o")
    problems = [] if found == right else [f"{found}"]
    for mode in ("auto", "alltoallv"):
        way = ways.choose_way(world, replace(resolved, exchange=Exchange(mode)), TINY, place(TINY, world.size), probed)
        if way != Way("alltoallv", "device"):
            problems.append(f"{mode}: {way}")
    everywhere(problems)


class Idle:
    """A request that does nothing, at once."""

    def Start(self) -> None: ...

    def Test(self) -> bool:
        return True

    def Free(self) -> None: ...


def test_what_is_tried_is_written_down_as_fatal_before(world, everywhere):
    saved: list[Verdicts] = []
    found = bench.try_ways(world, 12, [("device", "alltoallv")], lambda line: None, saved.append)
    first, staged, both = ({("device", "alltoallv"): ENDED}, {("staged", "alltoallv"): ENDED},
                           {("staged", "alltoallv"): WORKS, ("staged", "persistent"): ENDED})
    right = [first | staged, first | both]
    whole = first | both | {("staged", "persistent"): WORKS}
    everywhere([] if saved == right and found == whole else [f"{saved}, {found}"])


def test_launch_findings_are_the_same_on_all_ranks(world, everywhere):
    found = bench.launch_findings(world)
    same = all(other == found for other in world.comm.allgather(found))
    names = [f.what for f in found] == ["ranks", "cores", "MPI threads", "memory kinds", "GPUs"]
    mended = all(f.right or f.mend for f in found)
    everywhere([] if same and names and mended and found[0].right and found[2].right else [f"{found}"])


def test_a_probe_is_written_and_a_run_goes_by_it(world, everywhere, job):
    code = page.run(job, (), None)
    launch.meet(world.comm)
    found, resolved = probe.read(job.with_name("probe.h5")), config.load(job)
    problems = [] if code == 0 and found.verdicts == EVERYTHING else [f"{code}, {found}"]
    if (found.speeds is None) != (world.size == 1) or (found.cuts is None) != (world.size == 1):
        problems.append(f"{found}")
    if (taken := ways.read_probe(resolved, TINY, world.size, world.library)) is None or taken.host != found.host:
        problems.append(f"{taken} is taken")
    way = ways.choose_way(world, resolved, TINY, place(TINY, world.size), found)
    if way.speeds is not found.speeds or (world.size > 1 and way.mode != "auto"):
        problems.append(f"{way}")
    everywhere(problems)


def test_a_probe_of_something_else_is_left_aside(comm, everywhere, capsys, tmp_path):
    """Not one of other hosts: a job is rarely given the same ones again."""
    resolved = Job("m", "p", "o", probe=str(tmp_path / "probe.h5"))
    right = Probe(("elsewhere", "there"), "MPI 1", ways.units(TINY, resolved), TINY.name, EVERYTHING)
    others = {"": right, "ranks 1 there, 2 here": replace(right, host=("elsewhere",)),
              "the MPI library MPI 0 there, MPI 1 here": replace(right, library="MPI 0"),
              "the model large there": replace(right, model="large"),
              "bytes of a row 2 there": replace(right, units=1)}
    problems = []
    for words, other in others.items():
        probe.write(Path(resolved.probe), other, "")
        taken, said = ways.read_probe(resolved, TINY, 2, "MPI 1"), capsys.readouterr().err
        if (taken is None) != bool(words) or words not in said:
            problems.append(f"{words or 'the same'}: {taken}, {said}")
    everywhere(problems)


def test_auto_measures_where_there_is_no_probe(world, everywhere, job):
    way = ways.choose_way(world, replace(config.load(job), probe=""), TINY, place(TINY, world.size), None)
    speeds = world.comm.allgather(None if way.speeds is None else way.speeds.persistent.tolist())
    measured = speeds[0] is not None and speeds.count(speeds[0]) == len(speeds)
    right = way.mode == "auto" and measured if world.size > 1 else way == Way()
    everywhere([] if right else [f"{way}"])


@pytest.mark.many_ranks
def test_two_hops_are_probed_where_nodes_have_several_ranks(world, everywhere, job):
    """On nodes of two ranks; a run goes by that, and measures where it lies on another number of nodes."""
    code = page.run(job, ("parallel.ranks_per_node=2",), None)
    launch.meet(world.comm)
    found, several = probe.read(job.with_name("probe.h5")), world.size > 2
    problems = [] if code == 0 and (found.hops is not None) == several else [f"{code}, {found}"]
    if several and world.size == 4:
        for per_node, taken in ((2, True), (3, True), (1, False), (4, False)):
            on = launch.with_nodes(world, per_node)
            way = ways.choose_way(on, config.load(job), TINY, place(TINY, world.size), found)
            if (way.hops is found.hops) != taken or (way.by is not None) != taken:
                problems.append(f"{per_node}: {way}")
        other = replace(found, nodes=3)
        way = ways.choose_way(launch.with_nodes(world, 2), config.load(job), TINY, place(TINY, world.size), other)
        problems += [] if way.hops is not None and way.hops is not found.hops else ["not measured anew"]
    everywhere(problems)


def test_the_job_is_cut_where_the_probe_says(world, everywhere, job):
    resolved = config.load(job)
    found = Probe(world.hosts, "", 1, "", {("device", "alltoallv"): WORKS}, SPEEDS,
                  Cuts(np.array([1, 100]), np.array([1.0, 1.0]), np.array([1.2, 0.5])))
    turns = ways.choose_turns(resolved, found)
    right = turns.overlapped and turns.most == 2 and [turns.parts(n) for n in (0, 1, 100, 1000)] == [1, 1, 2, 2]
    never = ways.choose_turns(resolved, replace(found, cuts=replace(found.cuts, halves=np.array([1.0, 0.99]))))
    right &= not never.overlapped and never.most == 1 and ways.choose_turns(resolved, None).parts(100) == 1
    everywhere([] if right else [f"{turns}, {never}"])


def test_timed_steps_are_those_of_the_model(world, everywhere, job):
    found = cuts.measure_cuts(world, TINY, config.load(job), Way(), 5)
    right = found.rows.tolist() == [1, 4] and (found.whole > 0).all() and (found.halves > 0).all()
    everywhere([] if right else [f"{found}"])
