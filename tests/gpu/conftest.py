"""Tests that need a GPU; `make test-gpu` runs them, alone and on several ranks."""

import pytest


@pytest.fixture(autouse=True, scope="session")
def gpu():
    """Skips where there is none."""
    cupy = pytest.importorskip("cupy", reason="no CuPy: pip install 'hpcmoe[cuda13]'")
    try:
        cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        pytest.skip(f"no GPU: {error}")
    return cupy
