"""The consoles for printed text, tables of a given width, and the sections of `vit-search --help`."""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.text import Text
from typer.core import TyperGroup

from vit_search.text import plain

OUTCOME_STYLE = {
    "completed": "green",
    "stopped": "yellow",
    "running": "cyan",
    "held": "cyan",
    "waiting": "cyan",
    "interrupted": "magenta",
    "failed": "red",
    "diverged": "red",
}
"""Colour of each outcome of a trial."""

PIPE_WIDTH = 100_000
"""Columns if the output is no terminal and COLUMNS is not set. Each row of a table is then one line, for `grep` and `awk`."""

SECTIONS = {
    "Search": "run lint plan resume extend status pause continue stop cancel set add logs schema",
    "Results": "show report compare ui sync doctor",
    "Production": "promote gate rollback history repair predict serve export config train",
    "Weights": "weights convert-weights",
    "Cluster": "submit list check cluster",
}
"""Commands in the order of the help. A command that is not listed here comes last, under Other."""


class _Console(Console):
    """Rich's console with two changes.

    In a pipe, where programs search the output, sentences are not broken into lines. Text cannot send control characters to the terminal.
    """

    def render_str(self, text: str, **options: Any) -> Any:
        """Render text with its control characters written out. All text on its way to the terminal comes through here."""
        return super().render_str(plain(text), **options)

    def print(self, *objects: Any, soft_wrap: bool | None = None, **options: Any) -> None:
        """Print text or tables. In a pipe, a text is one line, and the lines of a table have no blanks at their ends."""
        text = all(isinstance(thing, str) for thing in objects)
        soft_wrap = text and not self.is_terminal if soft_wrap is None else soft_wrap
        if text or self.is_terminal:
            super().print(*objects, soft_wrap=soft_wrap, **options)
            return
        with self.capture() as captured:
            super().print(*objects, soft_wrap=soft_wrap, **options)
        self.file.write("".join(f"{line.rstrip(' ')}\n" for line in captured.get().split("\n")[:-1]))


def escaped(text: object) -> str:
    """A text of others, for rich: it can neither add markup nor control the terminal."""
    return escape(plain(str(text)))


def console(*, stderr: bool = False) -> Console:
    """A console for standard output or standard error, as wide as COLUMNS says, else as its terminal."""
    columns = os.environ.get("COLUMNS", "")
    is_width = columns.isascii() and columns.isdigit() and int(columns) > 0
    on_terminal = (sys.stderr if stderr else sys.stdout).isatty()
    return _Console(stderr=stderr, highlight=False, emoji=False, width=int(columns) if is_width else None if on_terminal else PIPE_WIDTH)


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, width: int, right: Collection[str] = ()) -> list[str]:
    """A table as lines of rich's markup. No cell is cut or broken.

    Columns that do not fit are listed below their row, each with its name.

    Args:
        rows: cells in rich's markup.
        width: columns of the terminal.
        right: names of the columns that are aligned to the right.
    """

    def length(cell: str) -> int:
        return Text.from_markup(cell).cell_len

    def padded(cell: str, i: int) -> str:
        space = " " * (widths[i] - length(cell))
        return space + cell if columns[i] in right else cell + space

    widths = [max(map(length, cells)) for cells in zip(columns, *rows, strict=True)]
    beside = max((n for n in range(len(columns) + 1) if sum(widths[:n]) + 2 * (n - 1) <= width), default=0) or 1
    lines = [f"[dim]{'  '.join(padded(columns[i], i) for i in range(beside)).rstrip()}[/]"]
    for row in rows:
        lines.append("  ".join(padded(row[i], i) for i in range(beside)).rstrip())
        below = ""
        for name, cell in [(columns[i], row[i]) for i in range(beside, len(columns)) if row[i]]:
            part = f"{name} {cell}"
            if below and length(below) + 2 + length(part) > width:
                lines.append(f"{below},")
                below = ""
            below = f"{below}, {part}" if below else f"    {part}"
        lines += [below] * bool(below)
    return lines


class CommandGroup(TyperGroup):
    """A group of commands whose help lists them by section."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write each section, one command per line."""
        shown = {name: command for name in self.list_commands(ctx) if (command := self.get_command(ctx, name)) and not command.hidden}
        sections = {title: names.split() for title, names in SECTIONS.items()}
        listed = {name for names in sections.values() for name in names}
        sections["Other"] = [name for name in shown if name not in listed]
        for title, listed_names in sections.items():
            names = [name for name in listed_names if name in shown]
            longest = max(map(len, names), default=0)
            rows = [(name.ljust(longest), shown[name].get_short_help_str(formatter.width - 6 - longest)) for name in names]
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)
