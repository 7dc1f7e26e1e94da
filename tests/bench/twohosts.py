"""Two hosts on one machine: network namespaces joined by a veth pair, and mpiexec between them. Needs root."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from hpcmoe import launch, launcher
from hpcmoe.launch import World

HOSTS = ("10.99.71.1", "10.99.71.2")
"""Names of the namespaces, and addresses in them."""
LINK = "e0"
"""The network interface in each."""
BURST = 160 << 10
"""Bytes that the link lets through at once, where it was idle."""
LIMIT = 900
"""Seconds that mpiexec may take."""

LAUNCHER = """#!/bin/sh
# In place of ssh: [options] HOST COMMAND...
while [ "${1#-}" != "$1" ]; do shift; done
host=$1; shift
exec ip netns exec "$host" sh -c "$*"
"""


def check() -> str:
    """What is missing, in one line; "" where nothing is."""
    if os.getuid() != 0:
        return "network namespaces need root: run this as root, in a container with CAP_NET_ADMIN and CAP_SYS_ADMIN"
    if not (shutil.which("ip") and shutil.which("tc")) and shutil.which("apt-get"):
        print("installing iproute2 with apt-get", file=sys.stderr)
        for command in (["update"], ["install", "-y", "iproute2"]):
            subprocess.run(["apt-get", "-qq", *command], stdout=subprocess.DEVNULL, check=False)
    if not (shutil.which("ip") and shutil.which("tc")):
        return "ip and tc are missing: install iproute2"
    present = [name for name in HOSTS if Path("/run/netns", name).exists()]
    return f"network namespace {present[0]} is there: another run, or ip netns delete {present[0]}" if present else ""


@contextlib.contextmanager
def hosts() -> Iterator[None]:
    """The namespaces, joined; at the end they are gone, and all processes in them."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        for name in HOSTS:
            ip("netns", "add", name)
        ip("-n", HOSTS[0], "link", "add", LINK, "type", "veth", "peer", "name", LINK, "netns", HOSTS[1])
        for name in HOSTS:
            ip("-n", name, "address", "add", f"{name}/24", "dev", LINK)
            for link in ("lo", LINK):
                ip("-n", name, "link", "set", link, "up")
        for name in HOSTS:  # UCX takes no notice of an interface that is still coming up
            while " UP " not in ip("-n", name, "-brief", "link", "show", LINK):
                time.sleep(0.01)
        yield
    finally:
        for name in HOSTS:
            for pid in ip("netns", "pids", name, check=False).split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            ip("netns", "delete", name, check=False)


def ip(*words: str, check: bool = True) -> str:
    """What ip says. Raises `SystemExit` with its complaint."""
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    if check and done.returncode:
        raise SystemExit(f"ip {' '.join(words)}: {done.stderr.strip()}")
    return done.stdout


def shape(rate: float) -> None:
    """From inside a namespace: what leaves it does so at `rate` bytes/s, but for short bursts.

    The kernel hands over 64 KiB at once: a bucket that is smaller would cut them up, which costs more of a core than
    network cards do; a short queue would lose packets.
    """
    subprocess.run(["tc", "qdisc", "replace", "dev", LINK, "root", "tbf", "rate", f"{round(8 * rate)}bit", "burst",
                    str(BURST), "latency", "200ms"], check=True)


def main(file: str, page: Callable[[World], None], *ranks: int) -> int:
    """The benchmark in `file`: the two hosts, and each number of ranks on either, which share its core; `page` is what
    a rank does. The exit code."""
    if sys.argv[1:] == ["rank"]:
        cores, host = sorted(os.sched_getaffinity(0)), launcher.rank_by_launcher() * 2 // launcher.tasks_by_launcher()
        os.sched_setaffinity(0, cores[host % len(cores)::2])
        world = launch.start()
        return launch.guarded(world, lambda: page(world))
    missing = check()
    if missing:
        print(f"bench-{Path(file).stem}: {missing}", file=sys.stderr)
        return 2
    with hosts():
        return max(mpiexec("-genv", "OPENBLAS_NUM_THREADS", "1", sys.executable, file, "rank", ranks=count)
                   for count in ranks)


def mpiexec(*command: str, ranks: int = 1) -> int:
    """Runs `command` as so many ranks on each host, with the mpiexec (MPICH's) beside this Python; its exit code.

    UCX would see that both are one machine, and use its memory.
    """
    with tempfile.TemporaryDirectory() as folder:
        launcher = Path(folder) / "launcher.sh"
        launcher.write_text(LAUNCHER)
        launcher.chmod(0o755)
        hydra = Path(sys.executable).with_name("mpiexec.hydra")
        process = subprocess.Popen(
            ["ip", "netns", "exec", HOSTS[0], hydra, "-launcher", "ssh", "-launcher-exec", launcher,
             "-localhost", HOSTS[0], "-hosts", ",".join(HOSTS), "-genv", "UCX_TLS", "tcp,self",
             "-genv", "UCX_NET_DEVICES", LINK, "-ppn", str(ranks), "-n", str(2 * ranks), *command])
        try:
            return process.wait(LIMIT)
        finally:
            process.kill()
