"""`python rank.py -m pytest ...`: as `python -m mpi4py -m pytest ...`, with the GPU taken before MPI starts."""

import sys

from hpcmoe import gpu

found = gpu.take("gpu")
if found.failure:
    sys.exit(found.failure)
from mpi4py.run import main  # noqa: E402

main()
