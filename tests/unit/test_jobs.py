"""The job scripts without a Slurm: what shellcheck says of them, and what each example of site.sh starts."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT

JOBS = ROOT / "jobs"
SCRIPTS = sorted([*JOBS.glob("*.sh"), *JOBS.glob("*.sbatch")])
BATCH = sorted(JOBS.glob("*.sbatch"))
RECORD = '#!/bin/bash\necho "${0##*/} $* | $(env | grep MPI | sort | tr "\\n" " ")" >> "$RECORD"\n'
"""In a launcher's place: notes how it was called."""
EXAMPLES = {
    "pmi2-mpich": "srun --mpi=pmi2 --nodes=2 --ntasks=8 --ntasks-per-node=4 --cpus-per-task=16 --cpu-bind=cores "
                  "--gpus-per-node=4 hpcmoe run job.toml",
    "pmix-openmpi": "srun --mpi=pmix --nodes=2 --ntasks=8 --ntasks-per-node=4 --cpus-per-task=16 --cpu-bind=cores "
                    "--gpus-per-node=4 hpcmoe run job.toml",
    "cray": "srun --nodes=2 --ntasks=8 --ntasks-per-node=4 --cpus-per-task=16 --cpu-bind=map_ldom:3,2,1,0 "
            "--gpus-per-node=4 hpcmoe run job.toml",
    "mpiexec-mpich": "mpiexec -n 8 -ppn 4 hpcmoe run job.toml",
    "mpirun-openmpi": "mpirun -n 8 --map-by ppr:4:node hpcmoe run job.toml",
    "workstation": "mpiexec -n 8 -ppn 4 hpcmoe run job.toml",
}


def test_shellcheck_finds_nothing():
    beside = Path(sys.executable).with_name("shellcheck")
    program = str(beside) if beside.exists() else shutil.which("shellcheck")
    if not program:
        pytest.skip("not installed: shellcheck")
    ended = subprocess.run([program, "--external-sources", *SCRIPTS], cwd=ROOT, capture_output=True, text=True)
    assert len(SCRIPTS) >= 7 and ended.returncode == 0, ended.stdout


@pytest.mark.parametrize("script", BATCH, ids=lambda path: path.name)
def test_gpus_are_never_asked_for_by_task(script):
    lines = [line for line in script.read_text().splitlines() if line.startswith("#SBATCH")]
    assert lines and not any("per-task" in line or "gpu-bind" in line for line in lines)
    assert all(re.fullmatch(r"#SBATCH --[a-z-]+(=\S+)?", line) for line in lines)  # Slurm would take more for a value


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder with the scripts, launchers that only note how they are called, and modules that are there."""
    shutil.copytree(JOBS, tmp_path / "jobs")
    (tmp_path / "bin").mkdir()
    for name in ("srun", "mpiexec", "mpirun", "hpcmoe"):
        (tmp_path / "bin" / name).write_text(RECORD)
        (tmp_path / "bin" / name).chmod(0o755)
    return tmp_path


def run(site: Path, example: str, *words: str, **env: str) -> subprocess.CompletedProcess:
    """run.sbatch as Slurm would start it on two nodes of 64 cores and four GPUs."""
    path = site / "jobs" / "site.sh"
    path.write_text(re.sub(r"^EXAMPLE=\S+", f"EXAMPLE={example}", path.read_text(), flags=re.MULTILINE))
    given = {"PATH": f"{site / 'bin'}:/usr/bin:/bin", "RECORD": str(site / "record"), "HOME": str(site),
             "SLURM_JOB_ID": "1", "SLURM_JOB_NUM_NODES": "2", "SLURM_CPUS_ON_NODE": "64", "SLURM_GPUS_ON_NODE": "4",
             "CRAY_MPICH_ROOTDIR": "/opt/cray", "BASH_FUNC_module%%": "() { :; }"}
    return subprocess.run(["bash", "jobs/run.sbatch", *words], cwd=site, env=given | env, capture_output=True,
                          text=True, timeout=30)


@pytest.mark.parametrize("example", EXAMPLES)
def test_what_an_example_starts(site, example):
    ended = run(site, example, "job.toml")
    assert ended.returncode == 0, ended.stderr
    version, call = (site / "record").read_text().splitlines()
    assert version.startswith("hpcmoe --version") and call.startswith(f"{EXAMPLES[example]} | ")
    assert ("MPICH_GPU_SUPPORT_ENABLED=1" in call) == (example == "cray")


def test_site_sh_names_all_of_its_examples(site):
    text = (JOBS / "site.sh").read_text()
    assert set(re.findall(r"^([a-z0-9-]+)\)", text, re.MULTILINE)) == set(EXAMPLES)
    for example in EXAMPLES:  # each says whether it was tried
        line, = re.findall(rf"^{example}\) +# (.*)$", text, re.MULTILINE)
        assert line.endswith("Not tested here") or re.search(r"Tested.*: make test-slurm$", line)
    ended = run(site, "other", "job.toml")
    assert ended.returncode == 2 and "EXAMPLE=other is none of its examples" in ended.stderr


def test_without_its_arguments_a_script_says_how_it_is_called(site):
    ended = run(site, "pmi2-mpich")
    assert ended.returncode != 0 and "usage: sbatch --nodes=N jobs/run.sbatch job.toml" in ended.stderr


def test_the_exit_code_is_that_of_the_ranks(site):
    (site / "bin" / "srun").write_text("#!/bin/bash\nexit 3\n")
    assert run(site, "pmi2-mpich", "job.toml").returncode == 3


def test_sbatch_reads_what_site_sh_exports(site):
    """Switching to another example in the same shell leaves nothing of the first."""
    show = ". jobs/site.sh; echo \"${SBATCH_GPUS_PER_NODE-} ${SBATCH_SIGNAL-}\"; sed -i 's/^EXAMPLE=.*/EXAMPLE=cray/'" \
           " jobs/site.sh; . jobs/site.sh; echo \"${SBATCH_GPUS_PER_NODE-} ${SBATCH_SIGNAL-}\""
    run(site, "mpiexec-mpich", "job.toml")
    ended = subprocess.run(["bash", "-c", show], cwd=site, capture_output=True, text=True, env=dict(os.environ))
    assert ended.stdout.splitlines() == ["4 B:USR1@300", "4 "], ended.stderr


def test_a_node_without_ranks_is_an_error(site):
    """Bash would skip the command that divides by it, and the job would seem done."""
    path = site / "jobs" / "site.sh"
    path.write_text(re.sub(r"RANKS_PER_NODE=\S+", "RANKS_PER_NODE=0", path.read_text()))
    ended = run(site, "pmi2-mpich", "job.toml")
    assert ended.returncode == 2 and "RANKS_PER_NODE=0 in " in ended.stderr, ended.stderr
