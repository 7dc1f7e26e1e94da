"""`probe` as a job step: what ends it is known to the next one, and to the run."""

from pathlib import Path

import h5py
import numpy as np
import pytest
from launched import mpiexec
from models import TINY

from hpcmoe import tables
from hpcmoe.files import probe, prompts
from hpcmoe.files.probe import ENDED

FATAL = """
import os, signal
from hpcmoe.bench import probe
works = probe.works
def fatal(world, way, units):
    if way.transport == "device" and world.rank == 1:
        os.kill(os.getpid(), signal.SIGSEGV)
    return works(world, way, units)
probe.works = fatal
from hpcmoe.__main__ import main
main()
"""
"""The command line, with a library that cannot reach the memory of a device."""


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """A job that names its probe."""
    (tmp_path / "spec.toml").write_text(tables.dump(TINY))
    prompts.write(tmp_path / "p.h5", list("abcdef"), [np.array([n, 5], np.int32) for n in range(6)])
    (tmp_path / "job.toml").write_text('model = "spec.toml"\nprompts = "p.h5"\noutput = "out.h5"\nprobe = "probe.h5"\n'
                                       "[generate]\nmax_new_tokens = 4\n")
    return tmp_path / "job.toml"


def test_a_transport_that_ends_the_probe_is_left_out_by_the_next(job):
    first = mpiexec(3, "-c", FATAL, "probe", str(job))
    assert first.returncode != 0 and "trying alltoallv by transport device" in first.stderr
    assert probe.read(job.with_name("probe.h5")).verdicts == {("device", "alltoallv"): ENDED}
    early = mpiexec(3, "-m", "hpcmoe", "run", str(job))
    assert early.returncode == 3 and early.stderr.count("error:") == 1 and "run hpcmoe probe again" in early.stderr
    second = mpiexec(3, "-c", FATAL, "probe", str(job))
    assert second.returncode == 0 and "leaving out alltoallv by transport device" in second.stderr, second.stderr
    assert "alltoallv ENDED A PROBE" in second.stdout and "persistent works; auto takes it" in second.stdout
    third = mpiexec(3, "-c", FATAL, "probe", str(job))
    assert third.returncode == 0 and "leaving out alltoallv by transport device" in third.stderr, third.stderr
    ended = mpiexec(3, "-m", "hpcmoe", "run", str(job))
    assert ended.returncode == 0, ended.stderr
    with h5py.File(job.with_name("out.h5")) as file:
        assert len(file["prompt"]) == 6


def test_a_probe_that_is_none_is_one_line(job):
    job.with_name("probe.h5").write_text("no")
    ended = mpiexec(2, "-m", "hpcmoe", "run", str(job))
    assert ended.returncode == 3 and ended.stderr.count("hpcmoe: error:") == 1 and "probe.h5" in ended.stderr
