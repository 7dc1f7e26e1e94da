"""The pages that `bench` prints."""

import os
from collections.abc import Sequence
from importlib.util import find_spec

from hpcmoe.bench import experts
from hpcmoe.errors import JobError
from hpcmoe.report import text
from hpcmoe.spec import Moe


def bench_experts(moe: Moe, hidden: int, tokens: Sequence[int], threads: Sequence[int], peer: str | None) -> None:
    """Times of the mixture-of-experts block. Raises `JobError` where there are fewer cores than threads."""
    cores = len(os.sched_getaffinity(0))
    if max(threads) > cores:
        raise JobError(f"--threads {max(threads)}: there are {cores} cores here")
    out = text.console()
    out.print(f"Mixture-of-experts block, float32, H {hidden}, I {moe.hidden}, E {moe.experts}, K {moe.top_k}; "
              f"medians of {experts.ROUNDS} calls that take turns")
    if peer and not (find_spec(peer) and find_spec("torch")):
        out.print(f"{peer} is not installed, so ours is alone: pip install torch {peer}")
        peer = None
    figures = experts.measure(moe, hidden, tokens, threads, peer)
    base = {(f.tokens, f.threads): f.seconds for f in figures if f.name == "hpcmoe"}
    grid = text.table(">threads", ">tokens", "block", ">median", ">over ours", ">largest difference")
    for f in figures:
        grid.add_row(str(f.threads), str(f.tokens), f.name, text.seconds(f.seconds),
                     f"{f.seconds / base[f.tokens, f.threads]:.2f} x", f"{f.apart:.1e}")
    out.print(grid)
