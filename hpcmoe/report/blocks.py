"""What a report is made of, whoever shows it: a terminal prints its tables and sentences, a page has pictures too."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from hpcmoe.report import text

SHOWN = 16
"""Rows that a long table shows."""


@dataclass(frozen=True)
class Grid:
    """A table."""

    columns: tuple[str, ...]
    """names; those that begin with ">" are ranged right"""
    rows: tuple[tuple[str, ...], ...]
    """as long as `columns`; what files say may be in them"""


@dataclass(frozen=True)
class Picture:
    """How a figure is drawn. Nothing in it is taken from files but numbers."""

    name: str
    """of its file, without .png"""
    alt: str
    """what it shows, for those who do not see it"""
    draw: Callable[[Any], None]
    """draws on a matplotlib Figure"""
    height: float = 3.3
    """inches"""


@dataclass(frozen=True)
class Block:
    """A figure, a table or both, and what they say. Without both it says why there are none."""

    title: str
    says: str
    grid: Grid | None = None
    picture: Picture | None = None


@dataclass(frozen=True)
class Section:
    """Blocks that belong together."""

    title: str
    blocks: tuple[Block, ...]


def show(out: Console, sections: tuple[Section, ...]) -> None:
    """Prints them."""
    for section in sections:
        out.print(f"\n== {section.title}")
        for block in section.blocks:
            out.print(f"\n{block.title}: {block.says}" if block.says else f"\n{block.title}:")
            if block.grid:
                grid = text.table(*block.grid.columns)
                for row in block.grid.rows:
                    grid.add_row(*row)
                out.print(grid)
