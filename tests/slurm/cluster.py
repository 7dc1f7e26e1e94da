"""A real Slurm of four nodes on this machine, for tests: in a private folder, on loopback, without systemd.

    python tests/slurm/cluster.py DIR      # starts it, says how to use it, stops it at Ctrl-C

Each node is a slurmd with a host name of its own, in namespaces, where the kernel allows it. Slurm tells MPI which
ranks share a node. Nodes have 8 CPUs, whatever the machine has, and four GPUs that are not there.
"""

import contextlib
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch")
PACKAGES = ("slurmctld", "slurmd", "slurm-client", "munge", "libpmix2")
"""Of Debian, which have them; the last one is for srun --mpi=pmix."""
PMIX = next(Path("/usr/lib").glob("*/pmix2/lib"), Path("/usr/lib/pmix2/lib"))
"""Where Debian's Slurm looks for libpmix.so, which a package for developers would bring."""
NODES, CPUS, GPUS = 4, 8, 4
LONGEST = 60
"""Characters of the folder's name: those of a socket's are limited."""
CONF = """
ClusterName=test
SlurmctldHost=localhost(127.0.0.1)
SlurmUser=root
SlurmctldPort={ports[0]}
AuthInfo=socket={folder}/munge/sock,cred_expire=5
CredType=cred/munge
CommunicationParameters=NoCtldInAddrAny
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n/spool
TmpFS={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n/slurmd.log
MailProg=/bin/true
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=1000
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0,bf_interval=1,requeue_setup_env_fail
MpiDefault=pmi2
KillWait=5
MinJobAge=86400
CompleteWait=0
SlurmdTimeout=20
JobRequeue=1
ReturnToService=2
GresTypes=gpu
{nodes}
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE OverSubscribe=NO State=UP
"""
NODE = "NodeName={name} NodeHostname={name} NodeAddr=127.0.0.1 Port={port} CPUs={cpus} RealMemory=16000 Gres=gpu:{gpus}"
ON_A_NODE = """
hostname "$1" && mount --bind "$2/hosts" /etc/hosts && mount --bind "$2/shm" /dev/shm && mount --bind "$2/pmix" "$3"
shift 3
exec "$@"
"""
"""What a node's namespaces begin with: its name, the names of the others, a folder instead of the machine's shared
memory, and the PMIx that Slurm looks for. All nodes share the memory: it is their network, and goes with the folder."""
NETWORK = {"MPIR_CVAR_CH4_NETMOD": "ofi", "FI_PROVIDER": "sm2"}
"""What MPICH must have in its environment on these nodes: with sockets 16 ranks on two cores take ten times as long."""
NAMESPACES = ("unshare", "--uts", "--ipc", "--mount", "--propagation", "private")


def missing() -> str:
    """Why there can be no Slurm here; "" where there can."""
    if os.geteuid():
        return "not installed: a Slurm for tests, which needs root"
    there = os.environ["PATH"] + ":/usr/sbin:/sbin"
    gone = [name for name in PROGRAMS if not shutil.which(name, path=there)] + ["PMIx"] * (not PMIX.is_dir())
    return f"not installed: {', '.join(gone)} (make test-slurm installs Debian's {' '.join(PACKAGES)})" if gone else ""


@dataclass(frozen=True)
class Cluster:
    """A Slurm that runs."""

    folder: Path
    env: dict[str, str]
    """what its commands, and jobs, must have in their environment"""
    apart: bool
    """whether nodes have host names of their own"""

    def call(self, *words: str | Path, **env: str) -> str:
        """What one of its commands prints. Raises `RuntimeError` where it fails."""
        ended = subprocess.run([str(word) for word in words], env=self.env | env, capture_output=True, text=True,
                               timeout=60)
        if ended.returncode:
            raise RuntimeError(f"{words[0]} ended with {ended.returncode}: {ended.stderr.strip()}")
        return ended.stdout.strip()


@contextlib.contextmanager
def running(folder: Path) -> Iterator[Cluster]:
    """Starts a cluster in `folder`, and stops it with all jobs. Raises `RuntimeError` where it does not come up."""
    if len(str(folder)) > LONGEST:
        raise RuntimeError(f"{folder} has more than {LONGEST} characters")
    apart = subprocess.run([*NAMESPACES, "true"], capture_output=True).returncode == 0
    env = _prepare(folder)
    daemons: list[subprocess.Popen] = []
    try:
        daemons.append(_start(folder, env, "munged", "--foreground", f"--socket={folder}/munge/sock",
                              f"--key-file={folder}/munge/key", f"--pid-file={folder}/munge/pid",
                              f"--seed-file={folder}/munge/seed", f"--log-file={folder}/munge/log", "--force"))
        _until(lambda: (folder / "munge" / "sock").exists(), "munged", folder)
        daemons.append(_start(folder, env, "slurmctld", "-D", "-c"))
        for name in _names():
            prefix = (*NAMESPACES, "sh", "-c", ON_A_NODE, "sh", name, folder, PMIX) if apart else ()
            daemons.append(_start(folder, env, *prefix, "slurmd", "-D", "-N", name))
        cluster = Cluster(folder, env, apart)
        _until(lambda: _idle(cluster) == NODES, "four nodes", folder)
        yield cluster
        with contextlib.suppress(RuntimeError):
            cluster.call("scancel", "--user=root")
            _until(lambda: not cluster.call("squeue", "--noheader"), "jobs to end", folder)
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
        for daemon in daemons:
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        _end_left(folder)


def _names() -> list[str]:
    return [f"n{number + 1}" for number in range(NODES)]


def _prepare(folder: Path) -> dict[str, str]:
    """Writes the configuration; returns the environment."""
    for part in ("munge", "state", "shm", *(f"{name}/spool" for name in _names())):
        (folder / part).mkdir(parents=True, mode=0o700)
    (folder / "munge" / "key").write_bytes(os.urandom(128))
    (folder / "munge" / "key").chmod(0o400)
    shutil.copytree(PMIX, folder / "pmix", symlinks=True)
    if not (folder / "pmix" / "libpmix.so").exists():
        (folder / "pmix" / "libpmix.so").symlink_to("libpmix.so.2")
    for number in range(GPUS):  # read as /dev/null: what has to be there is a device
        os.mknod(folder / f"nvidia{number}", 0o600 | 0o020000, os.makedev(1, 3))
    ports = _ports(NODES + 1)
    nodes = [NODE.format(name=name, port=port, cpus=CPUS, gpus=GPUS) for name, port in zip(_names(), ports[1:])]
    (folder / "slurm.conf").write_text(CONF.format(folder=folder, ports=ports, nodes="\n".join(nodes)))
    (folder / "gres.conf").write_text(f"Name=gpu File={folder}/nvidia[0-{GPUS - 1}] Flags=nvidia_gpu_env\n")
    (folder / "mpi.conf").write_text("PMIxCollFence=ring\n")  # the default one loses ranks now and then
    (folder / "hosts").write_text("127.0.0.1 localhost " + " ".join([socket.gethostname(), *_names()]) + "\n")
    keep = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "SBATCH", "PMI"))}
    return keep | {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}


def _ports(count: int) -> list[int]:
    """Ports of loopback that are free now."""
    taken = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in taken]
    for one in taken:
        one.close()
    return ports


def _start(folder: Path, env: dict[str, str], *words: str | Path) -> subprocess.Popen:
    """A daemon that ends when we do, whatever ends us."""
    libc, us = ctypes.CDLL(None), os.getpid()

    def follow() -> None:
        libc.prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
        if os.getppid() != us:
            os._exit(1)
    with (folder / "daemons.log").open("ab") as log:
        return subprocess.Popen([str(word) for word in words], env=env, stdin=subprocess.DEVNULL, stdout=log,
                                stderr=log, start_new_session=True, preexec_fn=follow)


def _idle(cluster: Cluster) -> int:
    """How many nodes are ready."""
    try:
        return cluster.call("sinfo", "--noheader", "--Node", "--format=%t").split().count("idle")
    except RuntimeError:  # nobody answers yet
        return 0


def _until(ready, what: str, folder: Path, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > end:
            logs = "\n".join((folder / name).read_text(errors="replace")[-2000:]
                             for name in ("daemons.log", "slurmctld.log") if (folder / name).exists())
            raise RuntimeError(f"waited {seconds:g} s for {what}:\n{logs}")
        time.sleep(0.05)


def _end_left(folder: Path) -> None:
    """Kills what jobs left: Slurm's shepherds outlive slurmd, and all of them know the configuration."""
    mark = f"SLURM_CONF={folder / 'slurm.conf'}".encode()
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if mark in path.read_bytes().split(b"\0") and int(path.parent.name) != os.getpid():
                os.kill(int(path.parent.name), signal.SIGKILL)


def main() -> None:
    """A cluster to try things on."""
    if why := missing():
        sys.exit(why)
    with running(Path(sys.argv[1]).absolute()) as cluster, contextlib.suppress(KeyboardInterrupt):
        settings = {name: value for name, value in (cluster.env | NETWORK).items() if os.environ.get(name) != value}
        print("export " + " ".join(f"'{name}={value}'" for name, value in settings.items()), flush=True)
        signal.pause()


if __name__ == "__main__":
    main()
