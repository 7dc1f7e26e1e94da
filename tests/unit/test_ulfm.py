"""What ranks say of themselves when one died, and what must be given for that."""

from array import array

import numpy as np
import pytest

from hpcmoe import ulfm
from hpcmoe.errors import DeviceError, JobError


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """That of Open MPI's mpirun --with-ft ulfm."""
    monkeypatch.setenv(ulfm.ON, "1")
    monkeypatch.delenv(ulfm.LAYER, raising=False)


class Request:
    """Ends after so many looks."""

    def __init__(self, looks: int, finish) -> None:
        self.looks, self.finish = looks, finish

    def Test(self) -> bool:  # as in mpi4py
        self.looks -= 1
        if self.looks < 0:
            self.finish()
        return self.looks < 0


class Ranks:
    """A communicator on which the others say `words`."""

    def __init__(self, *words: int, looks: int = 3) -> None:
        self.words, self.looks = words, looks

    def Iagree(self, mine: array) -> Request:
        def finish() -> None:
            mine[0] = int(np.bitwise_and.reduce([mine[0], *self.words]))
        return Request(self.looks, finish)


@pytest.mark.parametrize(("words", "code"), [
    ((ulfm.WELL, ulfm.WELL), 0), ((ulfm.WELL, ulfm.HEARD), 0), ((70 << 2, ulfm.WELL), 70), ((2 << 2, ulfm.HEARD), 2),
    ((4 << 2, 4 << 2), 4),
])
def test_a_verdict_says_whether_all_is_well_or_with_which_code_the_job_ends(words, code):
    verdict = ulfm.agree(Ranks(*words[1:]), words[0], 5)
    assert ulfm.ending(verdict) == code
    assert (verdict == ulfm.WELL) == (set(words) == {ulfm.WELL})


def test_nobody_waits_for_ever():
    with pytest.raises(DeviceError, match="not all others say within 0 s"):
        ulfm.agree(Ranks(looks=10**9), ulfm.HEARD, 0.01)


def test_what_shrink_needs_is_said(monkeypatch):
    ulfm.check("Open MPI", "host", "auto")
    ulfm.check("Open MPI", "device", "staged")
    with pytest.raises(JobError, match=r"set exchange\.transport = staged"):
        ulfm.check("Open MPI", "device", "auto")
    monkeypatch.setenv(ulfm.LAYER, "ucx")
    with pytest.raises(JobError, match="OMPI_MCA_pml = ucx knows of no dead ranks"):
        ulfm.check("Open MPI", "host", "auto")
    monkeypatch.delenv(ulfm.ON)
    with pytest.raises(JobError, match="needs Open MPI's mpirun --with-ft ulfm"):
        ulfm.check("MPICH", "host", "auto")
    assert not ulfm.on() and not ulfm.tells_of_death(RuntimeError())
