"""Words and tables for a terminal or a log."""

import os
import sys
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from hpcmoe import errors
from hpcmoe.errors import size as size


class Page(Console):
    """What people and models wrote is printed as it is: no markup means anything, nothing steers the terminal, and it
    is the terminal that wraps long lines."""

    def __init__(self, width: int | None) -> None:
        super().__init__(width=width, highlight=False, markup=False, emoji=False, soft_wrap=True)

    def render_str(self, text: str, **options: Any) -> Text:  # type: ignore[override]
        """Every string on its way to the page, cells of tables too."""
        return super().render_str(visible(text), **options)


def visible(words: str) -> str:
    """`words` with control characters as escapes; ends of lines and tabs stay."""
    return errors.visible(words, "\n\t")


def console() -> Page:
    """Where pages are printed: as wide as the terminal, 110 columns in a log."""
    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 110
    return Page(width)


def table(*columns: str) -> Table:
    """An empty table; a column whose name begins with ">" is ranged right."""
    grid = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for name in columns:
        grid.add_column(name.removeprefix(">"), justify="right" if name.startswith(">") else "left")
    return grid


def plural(count: int, word: str) -> str:
    """"1 host", "2 hosts"."""
    return f"{count} {word}" if count == 1 else f"{count} {word}s"


def seconds(span: float) -> str:
    """A span of time as people write it: 12.3 s, 4.5 ms."""
    if span >= 1:
        return f"{span:.1f} s"
    return f"{span * 1e3:.2f} ms"
