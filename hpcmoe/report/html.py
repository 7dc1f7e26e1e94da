"""A report as one HTML file that needs nothing beside it."""

import base64
import html
from collections.abc import Mapping, Sequence
from importlib import resources
from string import Template

from hpcmoe import __version__
from hpcmoe.errors import visible
from hpcmoe.report.blocks import Block, Grid, Section


def page(title: str, lead: str, sections: Sequence[Section], pictures: Mapping[str, bytes]) -> str:
    """The page; pictures are PNGs by their names."""
    template = Template(resources.files("hpcmoe.report").joinpath("page.html").read_text(encoding="utf-8"))
    links = "".join(f'<li><a href="#{_anchor(n)}">{said(section.title)}</a></li>' for n, section in enumerate(sections))
    contents = f'<nav aria-label="Contents"><ul>{links}</ul></nav>' if len(sections) > 2 else ""
    main = "\n".join(_section(n, section, pictures) for n, section in enumerate(sections))
    return template.substitute(title=said(title), lead=said(lead), contents=contents, main=main,
                               foot=said(f"Made by hpcmoe {__version__}."))


def said(words: str) -> str:
    """Words of anybody's as text of a page: nothing in them is markup, hides, or turns the direction of writing."""
    return html.escape(visible(words))


def _anchor(number: int) -> str:
    return f"section-{number}"


def _section(number: int, section: Section, pictures: Mapping[str, bytes]) -> str:
    blocks = "\n".join(_block(block, pictures) for block in section.blocks)
    return (f'<section aria-labelledby="{_anchor(number)}">\n<h2 id="{_anchor(number)}">{said(section.title)}</h2>\n'
            f'<div class="blocks">\n{blocks}\n</div>\n</section>')


def _block(block: Block, pictures: Mapping[str, bytes]) -> str:
    title, words = f"<h3>{said(block.title)}</h3>", f"<p>{said(_sentence(block.says))}</p>" if block.says else ""
    grid = _table(block.grid, block.title) if block.grid else ""
    picture = block.picture
    if picture is None or picture.name not in pictures:
        return f'<div class="wide">\n{title}\n{words}\n{grid}\n</div>'
    data = base64.b64encode(pictures[picture.name]).decode("ascii")
    numbers = f"<details>\n<summary>The numbers as a table</summary>\n{grid}\n</details>" if grid else ""
    return (f'<div>\n<figure>\n<figcaption>{title}{words}</figcaption>\n'
            f'<img src="data:image/png;base64,{data}" alt="{said(picture.alt)}"{_size(pictures[picture.name])}>\n'
            f'</figure>\n{numbers}\n</div>')


def _sentence(words: str) -> str:
    """With a capital, as it stands alone here."""
    return words[:1].upper() + words[1:]


def _size(png: bytes) -> str:
    """Width and height, that the page need not move when a picture is there; they stand behind a PNG's mark."""
    width, height = (int.from_bytes(png[at:at + 4], "big") for at in (16, 20))
    return f' width="{width}" height="{height}"'


def _table(grid: Grid, name: str) -> str:
    """In a box of its own that scrolls where it is wider than the page."""
    kinds = [' class="number"' if column.startswith(">") else "" for column in grid.columns]
    head = "".join(f'<th scope="col"{kind}>{said(column.removeprefix(">"))}</th>'
                   for kind, column in zip(kinds, grid.columns))
    body = "\n".join("<tr>" + "".join(_cell(cell, kind, first=n == 0) for n, (cell, kind) in enumerate(zip(row, kinds)))
                     + "</tr>" for row in grid.rows)
    return (f'<div class="scroll" role="region" tabindex="0" aria-label="{said(name)}">\n<table>\n'
            f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>\n</div>")


def _cell(words: str, kind: str, first: bool) -> str:
    return f'<th scope="row"{kind}>{said(words)}</th>' if first else f"<td{kind}>{said(words)}</td>"
