"""Installs Debian's Slurm for the tests of this folder. Its services are not started: the tests start their own, in a
private folder."""

import sys
from pathlib import Path

from cluster import PACKAGES, missing

sys.path.append(str(Path(__file__).parents[1]))
from debian import install

if __name__ == "__main__":
    install("tests with Slurm", PACKAGES, missing)
