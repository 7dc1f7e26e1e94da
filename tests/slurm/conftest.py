"""A Slurm for all tests of this folder."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import cluster as slurm
import pytest
from cluster import Cluster
from submitted import Site, make_site


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Four nodes."""
    if why := slurm.missing():
        pytest.skip(why)
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    try:
        with slurm.running(folder) as found:
            yield found
    finally:
        shutil.rmtree(folder)


@pytest.fixture
def site(cluster: Cluster, tmp_path: Path) -> Site:
    """Two ranks on each node, no GPUs."""
    return make_site(cluster, tmp_path)
