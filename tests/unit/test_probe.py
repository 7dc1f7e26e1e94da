"""probe.h5, and what is decided by it."""

import subprocess
import sys

import h5py
import numpy as np
import pytest

from hpcmoe.errors import InputError
from hpcmoe.files import probe
from hpcmoe.files.probe import Probe
from hpcmoe.report.show import show
from hpcmoe.types import Cuts, Speeds

SPEEDS = Speeds(np.array([1e3, 1e4, 1e5]), np.array([9.0, 10.0, 20.0]), np.array([5.0, 10.0, 90.0]))
CUTS = Cuts(np.array([1, 4, 16]), np.array([1.0, 2.0, 4.0]), np.array([2.0, 2.0, 3.0]))
WHOLE = Probe(("a", "b"), "MPI", 64, "tiny", {"device": False, "staged": True}, SPEEDS, CUTS)


def test_a_probe_is_read_as_it_was_written(tmp_path, capsys):
    probe.write(tmp_path / "p.h5", WHOLE, "versions")
    found = probe.read(tmp_path / "p.h5")
    assert (found.host, found.library, found.units, found.model, found.works) == (
        WHOLE.host, WHOLE.library, WHOLE.units, WHOLE.model, WHOLE.works)
    for name in ("size", "alltoallv", "persistent"):
        assert np.array_equal(getattr(found.speeds, name), getattr(SPEEDS, name))
    for name in ("rows", "whole", "halves"):
        assert np.array_equal(getattr(found.cuts, name), getattr(CUTS, name))
    show(tmp_path / "p.h5", 20)
    said = capsys.readouterr().out
    assert "device DOES NOT WORK, staged works; auto takes staged" in said and "cuts in two" in said


def test_a_probe_that_was_ended_tells_what_ended_it(tmp_path):
    probe.write(tmp_path / "p.h5", Probe(("a",), "MPI", 64, "tiny", {"device": False}), "")
    found = probe.read(tmp_path / "p.h5")
    assert found.speeds is None and found.cuts is None
    with pytest.raises(InputError, match=r"no transport that works \(device failed\): run hpcmoe probe again"):
        print(found.best())


def test_the_first_transport_that_works_is_taken():
    assert WHOLE.best() == "staged"


@pytest.mark.parametrize("name", ["exchange/persistent", "step/halves", "transport/works"])
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
