"""The job scripts, submitted to a real Slurm."""

import subprocess
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
from submitted import PROMPTS, Site, make_site, processes, stand_in, starts

UNTIL_TOLD = '[ "${SLURM_RESTART_COUNT:-0}" = 0 ] || exec sleep 1\nsleep 100 & wait'
"""Of a stand-in: works until it is told to save; after a restart there is little left to do."""
DEAF = f"trap - USR1 TERM\n{UNTIL_TOLD}"
"""The same before it listens: the signal ends it."""
SLOW = """
import os, sys, time
from hpcmoe.engine.batch import Sequences
step = Sequences.batch
def slow(self):
    time.sleep(0.0 if "SLURM_RESTART_COUNT" in os.environ else 2.2)
    return step(self)
Sequences.batch = slow
from hpcmoe.__main__ import main
main()
"""
"""hpcmoe with long steps, before its first restart."""


EXAMPLES = ("pmi2-mpich", "mpiexec-mpich", "pmix-openmpi", "mpirun-openmpi")
"""Of site.sh, those for a Slurm such as this one."""


@pytest.fixture(scope="module")
def whole(cluster, tmp_path_factory) -> Path:
    """The results of the job on one rank, without Slurm."""
    site = make_site(cluster, tmp_path_factory.mktemp("whole"))
    ended = site.shell("hpcmoe run job.toml")
    assert ended.returncode == 0, ended.stderr
    return site.folder / "out.h5"


def assert_same(path: Path, other: Path) -> None:
    """Two results files have the same answers, bit for bit."""
    with h5py.File(path) as one, h5py.File(other) as two:
        for name in ("prompt", "id", "stop", "tokens/data", "tokens/offsets", "logprobs/data"):
            np.testing.assert_array_equal(one[name][:], two[name][:], err_msg=name)
        assert len(one["prompt"]) == PROMPTS


def test_sixteen_ranks_on_four_nodes(site, whole):
    site.edit(RANKS_PER_NODE="4")
    log = site.done(site.submit("run.sbatch", "job.toml", options=("--nodes=4",)))
    assert "4 nodes (n[1-4]), 4 ranks on each" in log and "16 ranks on" in log
    with h5py.File(site.folder / "out.h5") as file:
        assert file.attrs["ranks"] == 16
        assert file["exchange/step/bytes"][:].sum(axis=0)[2] > 0  # to other nodes
        if site.cluster.apart:
            assert [str(host) for host in file["host"].asstr()] == [f"n{n // 4 + 1}" for n in range(16)]
    assert_same(site.folder / "out.h5", whole)


@pytest.fixture(scope="module")
def slow(cluster, tmp_path_factory) -> dict[str, tuple[Site, str]]:
    """Jobs that wait for clocks of Slurm's, begun beside the other tests: (site, job) by name."""
    made = {}
    site = make_site(cluster, tmp_path_factory.mktemp("limited"))
    stand_in(site, "exit 75")
    site.edit(RESTARTS="2")
    made["limited"] = site, site.submit("run.sbatch", "job.toml", options=("--nodes=1",))
    site = make_site(cluster, tmp_path_factory.mktemp("again"))
    stand_in(site, '[ "${SLURM_RESTART_COUNT:-0}" = 0 ] || exit 0\nexit 75')
    made["again"] = site, site.submit("array.sbatch", "job.toml", "2", options=("--nodes=1", "--array=0-1"))
    site = make_site(cluster, tmp_path_factory.mktemp("walltime"))
    (site.folder / "slow.py").write_text(SLOW)
    site.edit(HPCMOE="(python slow.py)")
    # The shortest limit that Slurm knows; it looks at its clock every half a minute: the signal comes after 15 to 45 s.
    options = ("--nodes=1", "--time=1", "--signal=USR1@45")
    made["walltime"] = site, site.submit("run.sbatch", "job.toml", "--set", "schedule.max_sequences=1", options=options)
    return made


def test_an_array_is_packed_by_a_job_that_depends_on_it(site, whole, slow):
    array = site.submit("array.sbatch", "job.toml", "2", options=("--nodes=1", "--array=0-1"))
    pack = site.submit("pack.sbatch", "out.h5", "2", options=(f"--dependency=afterok:{array}",))
    assert site.facts(pack)["JobState"] == "PENDING"
    log = site.done(pack)
    assert f"out.h5: {PROMPTS} prompts" in log
    assert_same(site.folder / "out.h5", whole)


def test_the_wrong_launcher_is_noticed(site):
    """Four jobs of one rank each, which a Slurm makes of srun without the right PMI, do no work."""
    site.edit(LAUNCH="(srun --mpi=none)")
    facts = site.wait(site.submit("run.sbatch", "job.toml", options=("--nodes=2",)))
    assert facts["JobState"] == "FAILED" and facts["ExitCode"] == "4:0", site.logs()
    assert site.logs().count("4 tasks were started but MPI sees 1: use srun --mpi=pmi2") == 1
    assert not (site.folder / "out.h5").exists() and facts["Restarts"] == "0"


def test_every_rank_sees_all_gpus_of_its_node(site):
    site.edit(GPUS_PER_NODE="4", RANKS_PER_NODE="4")
    stand_in(site, 'echo "rank $SLURM_PROCID $SLURM_LOCALID: $CUDA_VISIBLE_DEVICES"')
    log = site.done(site.submit("run.sbatch", "job.toml", options=("--nodes=2",)))
    seen = sorted(line for line in log.splitlines() if line.startswith("rank "))
    assert seen == sorted(f"rank {n} {n % 4}: 0,1,2,3" for n in range(8)), log


def test_a_job_without_the_gpus_of_site_sh_says_so(site):
    site.edit(GPUS_PER_NODE="8")
    ended = site.shell("sbatch --parsable --nodes=1 jobs/run.sbatch job.toml")  # site.sh was not sourced
    facts = site.wait(ended.stdout.strip())
    assert facts["ExitCode"] == "2:0" and "source it before sbatch" in site.logs(), site.logs()


def test_scancel_ends_a_job_for_good(site):
    """Also one that saves its work at the signal."""
    stand_in(site, UNTIL_TOLD)
    job = site.submit("run.sbatch", "job.toml", options=("--nodes=2",))
    until(lambda: starts(site))
    site.cluster.call("scancel", job)
    assert site.wait(job)["JobState"] == "CANCELLED"
    until(lambda: not processes(site.folder), 20)
    time.sleep(1)
    facts = site.facts(job)
    assert facts["JobState"] == "CANCELLED" and facts["Restarts"] == "0", site.logs()


def until(ready, seconds: float = 60) -> None:
    """Waits until `ready()`."""
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.1)


@pytest.mark.parametrize("body", [UNTIL_TOLD, DEAF], ids=["listening", "deaf"])
def test_a_signal_to_save_puts_the_job_back(cluster, tmp_path, body):
    """To the ranks, or to the script where no srun tells them. All examples at once, for restarts take a while."""
    jobs = []
    for example in EXAMPLES if body == UNTIL_TOLD else EXAMPLES[:2]:
        site = example_site(cluster, tmp_path / example, example)
        stand_in(site, body)
        jobs.append((example, site, site.submit("run.sbatch", "job.toml", options=("--nodes=2",))))
    for example, site, job in jobs:
        until(lambda site=site: starts(site))
        batch = ("--batch",) if example.startswith("mpi") else ()
        cluster.call("scancel", *batch, "--signal=USR1", job)
    for example, site, job in jobs:
        log = site.done(job)
        assert {line.split()[1] for line in starts(site)} == {"0", "1"}, f"{example}: {log}"
        assert "back into the queue, restart 1" in log and site.facts(job)["Restarts"] == "1", f"{example}: {log}"


def example_site(cluster, folder: Path, example: str) -> Site:
    """A site that chose one of the examples."""
    folder.mkdir(exist_ok=True)
    site = make_site(cluster, folder)
    if example.endswith("openmpi"):
        site.use_openmpi()
    site.edit(EXAMPLE=example)
    return site


@pytest.mark.parametrize("example", EXAMPLES[1:])
def test_ranks_of_an_example_are_on_all_nodes(cluster, tmp_path, whole, example):
    site = example_site(cluster, tmp_path, example)
    site.done(site.submit("run.sbatch", "job.toml", options=("--nodes=2",)))
    with h5py.File(site.folder / "out.h5") as file:
        assert file.attrs["ranks"] == 4 and len(set(file["host"][:])) == (2 if site.cluster.apart else 1)
    assert_same(site.folder / "out.h5", whole)


def test_scaling(site):
    """One and two nodes, strong and weak; the largest run is in both tables."""
    log = site.done(site.submit("scaling.sbatch", "job.toml", options=("--nodes=2",)))
    folder, = site.folder.glob("scaling-*")
    assert {path.name for path in folder.iterdir()} == {"strong-1.h5", "strong-2.h5", "weak-1.0-of-2.h5", "scaling.png"}
    assert "Strong scaling" in log and "Weak scaling" in log and "efficiency" in log


def test_probe(site):
    site.done(site.submit("probe.sbatch", "job.toml", "-o", "probe.h5", options=("--nodes=1",)))
    assert (site.folder / "probe.h5").exists()
    log = site.done(site.submit("run.sbatch", "job.toml", "--set", "probe=probe.h5", options=("--nodes=1",)))
    assert f"out.h5: {PROMPTS} prompts" in log


def test_a_workstation_without_slurm(site, whole):
    site.edit(EXAMPLE="workstation")
    ended = site.shell("bash jobs/run.sbatch job.toml --set checkpoint.every=0")
    assert ended.returncode == 0 and "job without Slurm" in ended.stderr, ended.stderr
    assert_same(site.folder / "out.h5", whole)


def test_a_workstation_saves_at_a_signal(site):
    site.edit(EXAMPLE="workstation")
    stand_in(site, "sleep 100 & wait")
    process = subprocess.Popen(["bash", "jobs/run.sbatch", "job.toml"], cwd=site.folder, env=site.env,
                               stderr=subprocess.PIPE, text=True)
    until(lambda: len(starts(site)) == 2)  # both ranks listen: one that hears nothing sleeps on
    process.terminate()
    _, said = process.communicate(timeout=30)
    assert process.returncode == 75 and "the same command goes on from here" in said, said


def test_walltime_checkpoint_requeue_finish(slow, whole):
    """Slurm's signal ahead of the time limit, not ours."""
    site, job = slow["walltime"]
    log = site.done(job)
    assert log.count("USR1 came; checkpointed") == 1 and "back into the queue, restart 1 of at most 20" in log, log
    assert site.facts(job)["Restarts"] == "1" and "restart 1, 1 nodes" in log
    with h5py.File(site.folder / "out.h5") as file:
        assert file["timings/attempt"][:].max() == 1
    assert_same(site.folder / "out.h5", whole)


def test_restarts_are_limited(slow):
    site, job = slow["limited"]
    facts = site.wait(job)
    assert (facts["JobState"], facts["ExitCode"], facts["Restarts"]) == ("FAILED", "75:0", "2"), site.logs()
    assert [line.split()[1] for line in starts(site)] == ["0", "1", "2"]
    assert "restarted 2 times already" in site.logs()


def test_a_task_of_an_array_restarts_alone(slow):
    """The number of one of them is the array's own."""
    site, job = slow["again"]
    for task in (f"{job}_0", f"{job}_1"):
        assert site.wait(task)["JobState"] == "COMPLETED", site.logs()
    assert sorted(line.split()[1:3] for line in starts(site)) == [["0", "0"], ["0", "1"], ["1", "0"], ["1", "1"]]
