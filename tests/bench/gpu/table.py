"""The README's table of docs/bench-gpu.toml: `table.py` writes it anew."""

import sys
from pathlib import Path

from figures import FILE, Figure, Results, read

README = FILE.parents[1] / "README.md"
BEGIN, END = "<!-- bench-gpu: tests/bench/gpu/table.py writes this -->", "<!-- bench-gpu: end -->"
NAMES = ("what", "shape", "median", "floor", "reached", "target", "verdict", "without a graph", "PyTorch")
NOT_YET = "Not measured yet: `make bench-gpu` on a machine with a GPU writes docs/bench-gpu.toml, and its table here.\n"
NO_PEER = 'PyTorch was not measured: `make bench-gpu ARGS="--torch PYTHON"` names a Python that has it.'


def span(seconds: float | None) -> str:
    """Three digits: 20.5 µs, 1.23 ms."""
    if seconds is None:
        return ""
    size, unit = next((s, u) for s, u in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")) if seconds >= s or u == "µs")
    value = seconds / size
    return f"{value:.{0 if value >= 99.95 else 1 if value >= 9.995 else 2}f} {unit}"


def reached(figure: Figure) -> tuple[str, str]:
    """The value and its target, in words: a share as 87.0 %, a ratio as 1.25 ×."""
    if figure.share:
        return f"{100 * figure.value:.1f} %", f"≥ {100 * figure.target:g} %"
    return f"{figure.value:.3f} ×", f"≤ {figure.target:g} ×"


def line(figure: Figure) -> str:
    """One row of the table."""
    cells = (figure.what, figure.shape + (f" ({figure.note})" if figure.note else ""), span(figure.seconds),
             span(figure.floor), *reached(figure), "met" if figure.met else "missed",
             span(figure.launched), span(figure.peer))
    return f"| {' | '.join(cells)} |".replace("  ", " ")


def table(results: Results) -> str:
    """Markdown."""
    if not results.figures:
        return NOT_YET
    dates = sorted({figure.date for figure in results.figures})
    where = ", ".join(words if name == "device" else f"{name} {words}" for name, words in results.machine.items())
    lines = [f"{where}; {' to '.join(dict.fromkeys((dates[0], dates[-1])))}.", "",
             f"| {' | '.join(NAMES)} |", "|---" * len(NAMES) + "|", *map(line, results.figures)]
    if all(figure.peer is None for figure in results.figures):
        lines += ["", NO_PEER]
    lines += [f"\nNot measured: {row}, {why}." for row, why in results.failed.items()]
    return "\n".join(lines) + "\n"


def parts(text: str) -> tuple[str, str, str]:
    """What is before the table, the table, and what is behind it."""
    before, found, rest = text.partition(BEGIN + "\n")
    now, end, behind = rest.partition(END)
    if not found or not end:
        raise ValueError(f"{README} has no place for the table: two lines, {BEGIN} and {END}")
    return before + found, now, end + behind


def rewrite(readme: Path = README, file: Path = FILE) -> None:
    """Puts the table of `file` into `readme`."""
    before, _, behind = parts(readme.read_text(encoding="utf-8"))
    readme.write_text(before + table(read(file)) + behind, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(rewrite())
