"""Installs programs of Debian's that tests need, where we are root and may; says in words where not."""

import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

POLICY = Path("/usr/sbin/policy-rc.d")
"""Debian asks it before it starts a service; 101 is no."""


def install(what: str, packages: Sequence[str], missing: Callable[[], str]) -> None:
    """Installs what `missing` says is missing, in words, "" for nothing; `what` names the tests. Without an error:
    tests that do not find it are skipped, and say why. No service is started."""
    why = missing()
    if not why:
        return
    if os.geteuid() or not shutil.which("apt-get"):
        print(f"{what} are skipped: {why}")
        return
    print(f"installing {' '.join(packages)} with apt-get, once", flush=True)
    ours = not POLICY.exists()
    if ours:
        POLICY.write_text("#!/bin/sh\nexit 101\n")
        POLICY.chmod(0o755)
    words = ["apt-get", "install", "-qq", "-y", "--no-install-recommends", *packages]
    try:
        if _quiet(words):  # perhaps the lists of packages are old, or not there
            _quiet(["apt-get", "update", "-qq"])
            _quiet(words)
    finally:
        if ours:
            POLICY.unlink()
    if why := missing():
        print(f"{what} are skipped: {why}")


def _quiet(words: list[str]) -> int:
    return subprocess.run(words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                          env=os.environ | {"DEBIAN_FRONTEND": "noninteractive"}).returncode
