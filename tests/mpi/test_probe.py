"""`probe` on real ranks: what works is found to work, what does not is not, and a run goes by it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from models import TINY

from hpcmoe import config, launch, tables
from hpcmoe.bench import cuts
from hpcmoe.bench import probe as bench
from hpcmoe.engine import ways
from hpcmoe.exchange.lane import Way
from hpcmoe.exchange.staged import Staged
from hpcmoe.files import probe, prompts
from hpcmoe.files.probe import Probe
from hpcmoe.report import probe as page
from hpcmoe.types import TRANSPORTS, Cuts, Speeds

pytestmark = pytest.mark.mpi
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
    comm.Barrier()
    return path


def test_every_transport_works(world, everywhere):
    said: list[str] = []
    found = bench.try_ways(world, 12, [], said.append, lambda works: None)
    everywhere([] if found == dict.fromkeys(TRANSPORTS, True) and len(said) == 4 else [f"{found}, {said}"])


def test_rows_that_come_damaged_are_noticed(world, everywhere, monkeypatch):
    """On the last rank alone; all ranks must know."""
    whole = Staged._end

    def damaged(self):
        whole(self)
        if world.rank == world.size - 1:
            self.arrived[-1:] ^= 1
    monkeypatch.setattr(Staged, "_end", damaged)
    found = bench.try_ways(world, 12, [], lambda line: None, lambda works: None)
    everywhere([] if found == {"device": True, "staged": False} else [f"{found}"])


def test_what_is_tried_is_written_down_as_fatal_before(world, everywhere):
    saved: list[dict[str, bool]] = []
    bench.try_ways(world, 12, ["device"], lambda line: None, saved.append)
    everywhere([] if saved == [{"device": False, "staged": False}] else [f"{saved}"])


def test_launch_findings_are_the_same_on_all_ranks(world, everywhere):
    found = bench.launch_findings(world)
    same = all(other == found for other in world.comm.allgather(found))
    names = [f.what for f in found] == ["ranks", "cores", "MPI threads", "memory kinds", "GPUs"]
    mended = all(f.right or f.mend for f in found)
    everywhere([] if same and names and mended and found[0].right and found[2].right else [f"{found}"])


def test_a_probe_is_written_and_a_run_goes_by_it(world, everywhere, job):
    code = page.run(job, (), None)
    world.comm.Barrier()
    found, resolved = probe.read(job.with_name("probe.h5")), config.load(job)
    problems = [] if code == 0 and found.works == dict.fromkeys(TRANSPORTS, True) else [f"{code}, {found}"]
    if (found.speeds is None) != (world.size == 1) or (found.cuts is None) != (world.size == 1):
        problems.append(f"{found}")
    if (taken := ways.read_probe(resolved, TINY, world.size)) is None or taken.host != found.host:
        problems.append(f"{taken} is taken")
    if ways.read_probe(resolved, TINY, world.size + 1) is not None:
        problems.append("a probe of other ranks is taken")
    way = ways.choose_way(world, resolved, TINY, found)
    if world.size > 1 and not np.array_equal(way.speeds.size, found.speeds.size):
        problems.append(f"{way}")
    everywhere(problems)


def test_auto_measures_where_there_is_no_probe(world, everywhere, job):
    way = ways.choose_way(world, replace(config.load(job), probe=""), TINY, None)
    speeds = world.comm.allgather(None if way.speeds is None else way.speeds.persistent.tolist())
    right = way.mode == "auto" and speeds.count(speeds[0]) == len(speeds) if world.size > 1 else way == Way()
    everywhere([] if right else [f"{way}"])


def test_the_job_is_cut_where_the_probe_says(world, everywhere, job):
    resolved = config.load(job)
    found = Probe(world.hosts, "", 1, "", {"device": True}, SPEEDS,
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
