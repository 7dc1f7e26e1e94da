"""probe.h5, and what is decided by it."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from hpcmoe import config
from hpcmoe.errors import InputError
from hpcmoe.files import probe
from hpcmoe.files.probe import ENDED, WORKS, WRONG, Probe
from hpcmoe.report import probe as page
from hpcmoe.report.show import show
from hpcmoe.types import MODES, TRANSPORTS, Cuts, Hops, Speeds

SPEEDS = Speeds(np.array([1e3, 1e4, 1e5]), np.array([9.0, 10.0, 20.0]), np.array([5.0, 10.0, 90.0]))
CUTS = Cuts(np.array([1, 4, 16]), np.array([1.0, 2.0, 4.0]), np.array([2.0, 2.0, 3.0]))
HOPS = Hops(np.array([1, 4]), np.array([1.0, 4.0]), np.array([2.0, 3.0]))
WHOLE = Probe(("a", "b"), "MPI", 64, "tiny",
              {("device", "alltoallv"): ENDED, ("staged", "alltoallv"): WORKS, ("staged", "persistent"): WORKS}, SPEEDS,
              CUTS, HOPS, 2)


def test_a_probe_is_read_as_it_was_written(tmp_path, capsys):
    probe.write(tmp_path / "p.h5", WHOLE, "versions")
    found = probe.read(tmp_path / "p.h5")
    assert (found.host, found.library, found.units, found.model, found.verdicts) == (
        WHOLE.host, WHOLE.library, WHOLE.units, WHOLE.model, WHOLE.verdicts)
    for name in ("size", "alltoallv", "persistent"):
        assert np.array_equal(getattr(found.speeds, name), getattr(SPEEDS, name))
    for name in ("rows", "whole", "halves"):
        assert np.array_equal(getattr(found.cuts, name), getattr(CUTS, name))
    for name in ("rows", "flat", "twohop"):
        assert np.array_equal(getattr(found.hops, name), getattr(HOPS, name))
    show(tmp_path / "p.h5", 20)
    said = capsys.readouterr().out
    assert found.nodes == 2 and "between 2 nodes" in said and "two hops" in said and "straight" in said
    assert "alltoallv ENDED A PROBE, persistent was not tried" in said and "cuts in two" in said
    assert "alltoallv works, persistent works; auto takes it" in said


def test_a_probe_that_was_ended_tells_what_ended_it(tmp_path):
    probe.write(tmp_path / "p.h5", Probe(("a",), "MPI", 64, "tiny", {("device", "alltoallv"): ENDED}), "")
    found = probe.read(tmp_path / "p.h5")
    assert found.speeds is None and found.cuts is None
    with pytest.raises(InputError, match=r"no transport that works \(alltoallv by device: ended\): run hpcmoe probe"):
        print(found.best())


def test_the_first_transport_that_works_is_taken():
    assert WHOLE.best() == "staged"


def test_each_mode_has_its_own_verdict():
    """Persistent requests fail; that keeps no job from exact counts."""
    found = replace(WHOLE, verdicts={(t, m): v for t in TRANSPORTS for m, v in zip(MODES, (WORKS, WRONG))})
    assert found.best() == found.best("alltoallv") == "device"
    with pytest.raises(InputError, match=r"exchange\.mode persistent works"):
        found.best("persistent")


def test_the_probe_is_named_as_the_job_finds_it(tmp_path, monkeypatch):
    """Paths in a job are relative to it, those on the command line to the working directory."""
    (tmp_path / "jobs" / "probes").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    job = Path("jobs/job.toml")
    for target in (Path("jobs/probe.h5"), Path("jobs/probes/p.h5"), Path("p.h5"), Path("/scratch/p.h5")):
        job.write_text(f'model = "m"\nprompts = "p"\noutput = "o"\nprobe = "{page.named(target, job)}"\n')
        assert config.load(job).probe == str(target.resolve())
    assert page.named(Path("jobs/probes/p.h5"), job) == Path("probes/p.h5")


def test_what_ended_a_probe_is_known_to_the_next_ones(tmp_path, capsys):
    target = tmp_path / "p.h5"
    assert page.ended(target, WHOLE) == [] and not capsys.readouterr().err
    probe.write(target, WHOLE, "")
    assert page.ended(target, WHOLE) == [("device", "alltoallv")]
    assert page.ended(target, replace(WHOLE, library="another")) == []


def test_what_only_came_damaged_is_tried_again(tmp_path):
    target = tmp_path / "p.h5"
    probe.write(target, replace(WHOLE, verdicts={(t, "alltoallv"): WRONG for t in TRANSPORTS}, speeds=None), "")
    assert page.ended(target, WHOLE) == []


def test_all_is_tried_again_where_nothing_would_be_left(tmp_path):
    target = tmp_path / "p.h5"
    probe.write(target, replace(WHOLE, verdicts={(t, "alltoallv"): ENDED for t in TRANSPORTS}), "")
    assert page.ended(target, WHOLE) == []


def test_a_file_that_is_no_probe_is_not_replaced_in_silence(tmp_path, capsys):
    target = tmp_path / "p.h5"
    target.write_text("no")
    assert page.ended(target, WHOLE) == []
    assert "not an HDF5 file; it is written anew" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["exchange/persistent", "step/halves", "way/mode"])
def test_columns_of_different_lengths_are_damage(tmp_path, name):
    probe.write(tmp_path / "p.h5", WHOLE, "")
    with h5py.File(tmp_path / "p.h5", "a") as file:
        short = file[name][:-1]
        del file[name]
        file[name] = short
    with pytest.raises(InputError):
        probe.read(tmp_path / "p.h5")


@pytest.mark.parametrize("padded, exact, pays", [(1e3, 1e3, True), (1e4, 1e3, False), (1e3, 1e5, True),
                                                 (1e5, 1e5, False), (2e5, 2e5, False)])
def test_padding_counts(padded, exact, pays):
    assert SPEEDS.persistent_pays(padded, exact) is pays


@pytest.mark.parametrize("rows, pays", [(0, False), (1, False), (4, False), (8, True), (16, True), (99, True)])
def test_steps_are_cut_between_measurements_by_both(rows, pays):
    assert CUTS.pays(rows) is pays


def test_show_needs_no_mpi():
    code = "import sys; import hpcmoe.report.show, hpcmoe.report.probe; sys.exit('mpi4py.MPI' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
