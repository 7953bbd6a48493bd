"""The content of a report: blocks of text, tables and figures. Writes it as an HTML page that loads nothing, and as Markdown."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vit_search.report.picture import Picture
from vit_search.report.thumbnails import Sheet
from vit_search.text import code_block, plain
from vit_search.text import markdown as escape_markdown


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Table:
    """A table of texts. A column whose name ends in `>` is aligned right. The first column names the rows."""

    head: tuple[str, ...]
    rows: Sequence[Sequence[str]]
    caption: str = ""

    @property
    def titles(self) -> list[str]:
        """The column names as they are shown."""
        return [name.removesuffix(">") for name in self.head]

    def aligned(self, cells: Sequence[str]) -> list[tuple[str, bool]]:
        """Each cell of a row, and whether its column is aligned right."""
        return [(cell, name.endswith(">")) for cell, name in zip(cells, self.head, strict=True)]


@dataclass(frozen=True)
class Code:
    """A file to copy."""

    text: str


@dataclass(frozen=True)
class Row:
    """Figures side by side, if there is room."""

    pictures: Sequence[Picture]

    @property
    def alone(self) -> bool:
        """Whether each figure takes the whole width of the page."""
        return all(picture.wide for picture in self.pictures)


Block = Text | Table | Code | Row | Sheet


@dataclass(frozen=True)
class Section:
    """A heading and its content."""

    key: str
    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Page:
    """A report, independent of its format."""

    title: str
    lead: str
    figures: Sequence[tuple[str, str]]
    """The key figures, as (name, value)."""
    sections: Sequence[Section]


ROWS = 10
"""Maximum number of rows of a long table."""


def metric_text(value: float) -> str:
    """A metric as text."""
    return f"{value:.4f}" if abs(value) < 1000 else f"{value:,.0f}"


def value_cell(value: Any) -> str:
    """A parameter's value for a table."""
    return (
        f"{value:.3g}"
        if isinstance(value, float)
        else "null"
        if value is None
        else str(value).lower()
        if isinstance(value, bool)
        else str(value)
    )


def markdown(page: Page) -> str:
    """The report as Markdown for a terminal. Figures and images are only named; the tables have their numbers."""
    parts = [f"# {escape_markdown(page.title)}", escape_markdown(page.lead)]
    if page.figures:
        parts.append("\n".join(f"- {escape_markdown(name)}: **{escape_markdown(value)}**" for name, value in page.figures))
    for section in page.sections:
        parts.append(f"## {escape_markdown(section.title)}")
        for block in section.blocks:
            if isinstance(block, Text):
                parts.append(escape_markdown(block.text))
            elif isinstance(block, Table):
                parts += [escape_markdown(block.caption)] if block.caption else []
                lines = [
                    [escape_markdown(title) for title in block.titles],
                    ["--:" if name.endswith(">") else ":--" for name in block.head],
                ]
                lines += [[escape_markdown(cell) for cell in row] for row in block.rows]
                parts.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
            elif isinstance(block, Code):
                parts.append(code_block(block.text, "yaml"))
            elif isinstance(block, Sheet):
                parts.append(f"On the page: {escape_markdown(block.caption)}")
            else:
                parts.append("On the page: " + " ".join(escape_markdown(picture.alt) for picture in block.pictures))
    return "\n\n".join(parts) + "\n"


def render(page: Page, plotly_js: str = "") -> str:
    """The report as one HTML page that needs no other file, from the template `page.html.jinja`.

    Args:
        plotly_js: source of the library, for the page. A page without a `Row` does not need it, and has no script.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined  # imported here because it takes as long as a small command

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        finalize=_plain_text,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.tests |= {
        "text_block": lambda block: isinstance(block, Text),
        "code_block": lambda block: isinstance(block, Code),
        "table_block": lambda block: isinstance(block, Table),
        "sheet_block": lambda block: isinstance(block, Sheet),
    }
    pictures = [picture for section in page.sections for block in section.blocks if isinstance(block, Row) for picture in block.pictures]
    drawn = json.dumps([{"data": p.data, "layout": p.layout} for p in pictures], separators=(",", ":"), allow_nan=False)
    template = environment.get_template("page.html.jinja")
    return template.render(page=page, scripted=bool(pictures), pictures_json=drawn.replace("<", "\\u003c"), plotly_js=plotly_js)


def _plain_text(value: Any) -> Any:
    """Prepare a value for Jinja: control characters in texts are written out, finished HTML is left as it is."""
    return value if hasattr(value, "__html__") or not isinstance(value, str) else plain(value)
