"""The page that `verify` prints."""

from pathlib import Path

from hpcmoe import config
from hpcmoe.bench.verify import CLOSE, verify
from hpcmoe.errors import INTERNAL
from hpcmoe.report import text


def page(path: Path, overrides: tuple[str, ...], count: int, new: int, checkpoint: Path | None) -> int:
    """Prints the comparisons; returns the exit code. Raises `JobError`, `InputError`."""
    job = config.load(path, overrides)
    found = verify(job, count, new, checkpoint)
    grid = text.table("prompt", "compared with", ">tokens", ">same", ">largest difference", "")
    for c in found:
        grid.add_row(c.prompt, c.judge, str(c.tokens), str(c.same), f"{c.apart:.1e} std", "" if c.close else "TOO FAR")
    out = text.console()
    out.print(grid)
    if not checkpoint:
        out.print("transformers was not asked; --checkpoint names what the model file was converted from")
    wrong = [c for c in found if not c.close]
    bound = CLOSE[job.compute.dtype]
    out.print(f"{len(wrong)} of {len(found)} are further apart than {bound:g} standard deviations" if wrong else
              f"all within {bound:g} standard deviations of the logits, {job.compute.dtype}")
    return INTERNAL if wrong else 0
