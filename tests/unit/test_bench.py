"""`bench` and `verify`, at sizes where nothing is measured but whether they are right."""

from dataclasses import replace

import numpy as np
import pytest
from models import VARIANTS

from hpcmoe import config, launch, launcher, tables
from hpcmoe.bench import experts
from hpcmoe.bench.verify import verify
from hpcmoe.errors import DeviceError
from hpcmoe.files import prompts
from hpcmoe.report import bench
from hpcmoe.report.verify import page
from hpcmoe.spec import Moe


def test_the_block_is_timed_at_every_size():
    figures = experts.measure(Moe(4, 2, 24), 16, [1, 3, 40], [1], None)
    assert [(f.name, f.tokens, f.threads) for f in figures] == [("hpcmoe", n, 1) for n in (1, 3, 40)]
    assert all(f.seconds > 0 and f.apart == 0 for f in figures)


def test_a_peer_that_is_not_installed_is_said_so(capsys, monkeypatch):
    monkeypatch.setattr(bench, "find_spec", lambda name: None)
    bench.bench_experts(Moe(4, 2, 24), 16, [1], [1], "transformers")
    assert "transformers is not installed, so ours is alone" in capsys.readouterr().out


@pytest.fixture
def job(tmp_path):
    """A job on a tiny model that has a bit of everything."""
    spec = replace(VARIANTS["attention extras"], moe=replace(VARIANTS["chosen softmax"].moe, round_logits=True))
    (tmp_path / "spec.toml").write_text(tables.dump(spec))
    prompts.write(tmp_path / "p.h5", ["a", "b", "c"], [np.arange(1, n, dtype=np.int32) for n in (4, 9, 2)])
    (tmp_path / "job.toml").write_text('model = "spec.toml"\nprompts = "p.h5"\noutput = "o.h5"\n')
    return tmp_path / "job.toml"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_verify_compares_with_the_reference(job, dtype):
    found = verify(config.load(job, [f"compute.dtype={dtype}"]), 3, 4, None)
    assert [(c.prompt, c.judge, c.tokens) for c in found] == [(p, "reference", 4) for p in "abc"]
    assert all(c.close and (c.same == 4 or dtype == "bfloat16") for c in found)


def test_verify_says_what_is_too_far(job, capsys, monkeypatch):
    monkeypatch.setattr("hpcmoe.kernels.rope.frequencies", lambda a: np.zeros(a.turning // 2, np.float32))
    assert page(job, ("compute.dtype=float32",), 2, 2, None) == 70
    assert "TOO FAR" in capsys.readouterr().out


def test_a_world_of_one_among_many_tasks_is_refused(monkeypatch):
    for name in ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    assert launcher.tasks_by_launcher() == 1
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "16")
    with pytest.raises(DeviceError, match=r"16 tasks were started but MPI sees 1: use srun --mpi=pmi2"):
        launcher.check_launch(1, launcher.tasks_by_launcher(), "MPICH")
    launcher.check_launch(16, launcher.tasks_by_launcher(), "MPICH")
    monkeypatch.setenv("PMI_SIZE", "1")  # mpiexec -n 1 inside a job of 16 tasks
    launcher.check_launch(1, launcher.tasks_by_launcher(), "MPICH")


@pytest.mark.parametrize(("cores", "me", "want"), [
    ([(0, 1, 2, 3)] * 2, 0, (2, False)), ([(0, 1)] * 4, 3, (1, True)), ([(0, 1), (2, 3)], 1, (2, False)),
    ([(0,)], 0, (1, False))])
def test_cores_are_shared_among_those_that_were_given_the_same(cores, me, want):
    assert launch.share_cores(cores, me) == want


