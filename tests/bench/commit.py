"""What a checkpoint every minute costs: all ranks commit at once, and the slowest counts.

    mpiexec -n 16 python tests/bench/commit.py FOLDER

A rank has 32 sequences of 2,048 new tokens under way, and since its last commit 60 answers of 1,000 tokens and 1,000
steps through 61 layers with 256 experts. FOLDER should lie where outputs do.
"""

import shutil
import sys
import time
from pathlib import Path

import numpy as np
from mpi4py import MPI

from hpcmoe.engine.record import Record
from hpcmoe.files.parts import Provenance
from hpcmoe.traffic import Traffic
from hpcmoe.types import STAGES, Answer, Begun, StepTime

LAYERS, EXPERTS, K, STEPS, ANSWERS, BEGUN, ROUNDS = 61, 256, 8, 1000, 60, 32, 11


def main() -> None:
    """Prints a line from rank 0."""
    comm, folder = MPI.COMM_WORLD, Path(sys.argv[1]) / "bench-commit"
    origin = Provenance("", "bench", "", comm.size, ("host",) * comm.size, 1)
    record = Record(folder / "out.h5", 0, comm.rank, origin, 1e9, (LAYERS, EXPERTS, K), lambda: None)
    answers = [Answer(n, np.ones(1000, np.int32), np.ones(1000, np.float32), "length") for n in range(ANSWERS)]
    begun = [Begun(n, np.ones(2048, np.int32), np.ones(2048, np.float32)) for n in range(BEGUN)]
    sample = np.random.default_rng(0).integers(0, EXPERTS, (4, LAYERS, K)).astype(np.int16)
    seconds = np.zeros(ROUNDS)
    for number in range(ROUNDS):
        for step in range(STEPS):
            record.add(answers if step == 0 else (), np.ones((LAYERS, EXPERTS), np.int64),
                       np.ones(LAYERS, np.int64), sample, Traffic.none(LAYERS),
                       StepTime(step, 32, 32, 0.06, np.zeros(len(STAGES))), lambda: begun)
        comm.Barrier()
        begin = time.perf_counter()
        record.commit(begun)
        seconds[number] = time.perf_counter() - begin
    comm.Allreduce(MPI.IN_PLACE, seconds, MPI.MAX)
    if comm.rank == 0:
        shutil.rmtree(folder)
        usual = float(np.median(seconds))
        print(f"{comm.size} ranks: a commit takes {1e3 * usual:.0f} ms (median; {1e3 * seconds.max():.0f} ms at most): "
              f"{100 * usual / 60:.2f} % of a minute")


if __name__ == "__main__":
    main()
