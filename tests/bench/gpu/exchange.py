"""A persistent exchange of rows on a GPU that 4 ranks share, against the bare request on the same buffers.

`exchange.py FILE`: `hpcmoe bench exchange` measures, under the MPS daemon that run.py has started.
"""

import math
import subprocess
import sys
import tempfile
from pathlib import Path

from figures import Figure, against, tell

from hpcmoe.files import exchange

RANKS, H = 4, 7168
ROWS = (16, 64, 256, 1024)
TARGET = 1.1


def line(found: exchange.Figure) -> Figure:
    """Above the largest rung there is no request: exact counts took over, and MPI's own call is beside them."""
    exact = math.isnan(found.request)
    return against("exchange", f"exchange, {RANKS} ranks", f"{found.rows:,} rows a peer, H {H}", found.persistent,
                   found.raw if exact else found.request, TARGET,
                   note="above the largest rung: exact counts, against `MPI_Ialltoallv`" if exact else "")


def main() -> int:
    """The exit code of `hpcmoe`."""
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "exchange.h5"
        code = subprocess.run([str(Path(sys.executable).with_name("mpiexec")), "-n", str(RANKS), sys.executable, "-m",
                               "hpcmoe", "bench", "exchange", "--device", "gpu", "--hidden", str(H), "--rows",
                               ",".join(map(str, ROWS)), "-o", str(table)], check=False).returncode
        if code == 0:
            tell(Path(sys.argv[1]), [line(f) for f in exchange.read(table).figures if f.pattern == "even"])
    return code


if __name__ == "__main__":
    sys.exit(main())
