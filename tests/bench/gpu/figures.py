"""What `make bench-gpu` measured: docs/bench-gpu.toml.

Tables: `machine` (strings), `failed` (a row's name and why it could not be measured), and a list `figure`.
"""

import datetime
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import tomli_w

FILE = Path(__file__).parents[3] / "docs" / "bench-gpu.toml"


@dataclass(frozen=True)
class Figure:
    """One line of the table. Times are medians in seconds."""

    row: str
    """the script that measured it"""
    what: str
    shape: str
    seconds: float
    floor: float
    """what `seconds` is held against, in seconds"""
    value: float
    """what `target` is for: `seconds` in parts of `floor`, or a share"""
    target: float
    share: bool = False
    """whether `value` is a share that is to be `target` or more; else a ratio that is to be `target` or less"""
    launched: float | None = None
    """kernel by kernel, without a graph"""
    peer: float | None = None
    """PyTorch"""
    note: str = ""
    date: str = field(default_factory=lambda: datetime.date.today().isoformat())

    @property
    def met(self) -> bool:
        """Whether the target is."""
        return self.value >= self.target if self.share else self.value <= self.target


def against(row: str, what: str, shape: str, seconds: float, floor: float, target: float, **more) -> Figure:
    """A figure whose value is `seconds / floor`."""
    return Figure(row, what, shape, seconds, floor, seconds / floor, target, **more)


@dataclass(frozen=True)
class Results:
    """A file."""

    machine: Mapping[str, str]
    figures: Sequence[Figure] = ()
    failed: Mapping[str, str] = field(default_factory=dict)

    def replaced(self, rows: Sequence[str], row: str, figures: Sequence[Figure], why: str) -> "Results":
        """With what `row` gave this time, and why not all where `why` says it; `rows` is their order."""
        kept = [f for f in self.figures if f.row != row] + list(figures)
        failed = {name: words for name, words in self.failed.items() if name != row} | ({row: why} if why else {})
        return Results(self.machine, sorted(kept, key=lambda f: rows.index(f.row)), failed)


def write(path: Path, results: Results) -> None:
    """Four digits of each number; `verdict` is for people, and what `read` leaves out."""
    lines = [{**{name: value for name, value in asdict(f).items() if value not in (None, "")},
              "verdict": "met" if f.met else "missed"} for f in map(_short, results.figures)]
    table = {"machine": dict(results.machine), "failed": dict(results.failed), "figure": lines}
    whole = path.with_suffix(".new")  # who reads meanwhile, or ends this, finds the file as it was
    whole.write_text(tomli_w.dumps(table), encoding="utf-8")
    whole.replace(path)


def _short(figure: Figure) -> Figure:
    return replace(figure, **{name: float(f"{value:.4g}") for name, value in asdict(figure).items()
                              if isinstance(value, float)})


def read(path: Path) -> Results:
    """What `write` wrote, no figures where there is no file."""
    if not path.exists():
        return Results({})
    table = tomllib.loads(path.read_text(encoding="utf-8"))
    lines = [{name: value for name, value in line.items() if name != "verdict"} for line in table["figure"]]
    return Results(table["machine"], [Figure(**line) for line in lines], table["failed"])


def tell(path: Path, figures: Sequence[Figure]) -> None:
    """What a row's process has measured so far, for the one that started it."""
    write(path, Results({}, figures))
