"""What `pack` prints: a summary of the whole."""

from collections.abc import Sequence
from pathlib import Path

from hpcmoe.files import shards
from hpcmoe.report.run import summary


def pack(sources: Sequence[Path], output: Path, overwrite: bool) -> None:
    """Packs the shards in `sources`. Raises `JobError`, `InputError`."""
    worked = shards.pack(sources, output, overwrite)
    print(summary(output) if worked else f"{output} is packed already; --overwrite packs it again")
