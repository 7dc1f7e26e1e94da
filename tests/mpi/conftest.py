"""What MPI tests share beside tests/conftest.py."""

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session", autouse=True)
def small_measurements() -> Iterator[None]:
    """Where a job measures by what mode rows travel best, it does so with small messages: large ones, of a megabyte to
    each rank, would take most of its time."""
    from hpcmoe.exchange import tune
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tune, "LARGEST", 1 << 12)
        yield
