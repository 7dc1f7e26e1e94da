"""Installs Debian's Slurm for the tests of this folder, where we are root and may; says in words where not.

Its services are not started: the tests start their own, in a private folder.
"""

import os
import shutil
import subprocess
from pathlib import Path

from cluster import PACKAGES, missing

POLICY = Path("/usr/sbin/policy-rc.d")
"""Debian asks it before it starts a service; 101 is no."""


def main() -> None:
    """Without an error: tests that find no Slurm are skipped, and say why."""
    why = missing()
    if not why:
        return
    if os.geteuid() or not shutil.which("apt-get"):
        print(f"tests with Slurm are skipped: {why}")
        return
    print(f"installing {' '.join(PACKAGES)} with apt-get, once", flush=True)
    ours = not POLICY.exists()
    if ours:
        POLICY.write_text("#!/bin/sh\nexit 101\n")
        POLICY.chmod(0o755)
    install = ["apt-get", "install", "-qq", "-y", "--no-install-recommends", *PACKAGES]
    try:
        if _quiet(install):  # perhaps the lists of packages are old, or not there
            _quiet(["apt-get", "update", "-qq"])
            _quiet(install)
    finally:
        if ours:
            POLICY.unlink()
    if why := missing():
        print(f"tests with Slurm are skipped: {why}")


def _quiet(words: list[str]) -> int:
    return subprocess.run(words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                          env=os.environ | {"DEBIAN_FRONTEND": "noninteractive"}).returncode


if __name__ == "__main__":
    main()
