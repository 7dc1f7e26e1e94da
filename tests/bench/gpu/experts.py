"""The expert stage: rows in, product with gate and up, SwiGLU, product with down, rows out.

`experts.py FILE [PYTHON]`: figures to FILE, PyTorch's beside them where PYTHON has it.
"""

import sys
from pathlib import Path

import cupy
import floors
import numpy as np
from figures import Figure, against, tell
from timing import Peer, both, medians

from hpcmoe.array import BFLOAT16
from hpcmoe.device.gemm import Gemm
from hpcmoe.device.swiglu import swiglu
from hpcmoe.engine import device
from hpcmoe.files.drawn import Drawn
from hpcmoe.spec import Attention, ModelSpec, Moe

H, WIDTH = 7168, 2048
LAYERS = 16
"""1.4 GB of weights: those of a layer have left the cache of 50 MB long before their next turn."""
ROWS = {1: 1.6, 16: 1.6, 128: 1.6, 1024: 1.25, 8192: 1.25}
"""Rows, and how many times the floor they may take."""


def main() -> None:
    """One number of rows after another."""
    out, peer = Path(sys.argv[1]), Peer(sys.argv[2] if len(sys.argv) > 2 else "")
    model = ModelSpec("experts", LAYERS, H, max(ROWS), 2, Attention(1, 1, 2), None, Moe(1, 1, WIDTH))
    held = device.load(Drawn(model, 0), lambda layer: [0], BFLOAT16, "device")
    experts = [layer.experts[0] for layer in held.layers]
    stream, gemm, found = cupy.cuda.Stream(non_blocking=True), Gemm(), list[Figure]()
    cupy.cuda.Device().synchronize()
    for rows, target in ROWS.items():
        x, answers = held.embedding[:rows], cupy.empty((rows, H), np.uint16)  # random rows of variance 1

        def work(x=x, answers=answers) -> None:
            for expert in experts:
                swiglu(gemm, x, expert.gate_up, expert.down, answers)
        seconds = medians(both(stream, work, LAYERS) | peer.beside(f"experts {rows}"))
        found.append(against("experts", "expert stage", f"{rows:,} row{'s' * (rows > 1)}", seconds["graph"],
                             floors.expert(rows, H, WIDTH), target, launched=seconds["launched"],
                             peer=seconds.get("peer")))
        tell(out, found)
    peer.close()


if __name__ == "__main__":
    main()
