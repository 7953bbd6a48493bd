"""How wide printed text is, and the sections of `vit-search --help`."""

from __future__ import annotations

import os
import sys
from typing import Any

from rich.console import Console
from rich.markup import escape
from typer.core import TyperGroup

from vit_search.spec.plain_text import plain

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

PIPE_WIDTH = 160
"""Columns where the output is no terminal and COLUMNS does not say how many: most tables fit."""

SECTIONS = {
    "Search": "run lint plan resume extend status pause continue stop cancel set add logs schema",
    "Results": "show report compare ui sync doctor",
    "Production": "promote gate rollback history repair predict serve export config train",
    "Cluster": "submit list check cluster",
}
"""Commands in the order of the help; one that is listed nowhere comes last, under Other."""


class _Console(Console):
    """Rich's, which would break sentences in a pipe, too, where a program looks for them, and would let text speak to the terminal."""

    def render_str(self, text: str, **options: Any) -> Any:
        """All text on its way to the terminal; its control characters are written out."""
        return super().render_str(plain(text), **options)

    def print(self, *objects: Any, soft_wrap: bool | None = None, **options: Any) -> None:
        """Print; text is one line in a pipe, tables are as wide as the console."""
        text = all(isinstance(thing, str) for thing in objects)
        super().print(*objects, soft_wrap=text and not self.is_terminal if soft_wrap is None else soft_wrap, **options)


def escaped(text: object) -> str:
    """Text of others, for rich: no markup of theirs is taken for ours."""
    return escape(plain(str(text)))


def console(*, stderr: bool = False) -> Console:
    """Standard output, or standard error: as wide as its terminal, or as COLUMNS says."""
    columns = os.environ.get("COLUMNS", "")
    given = columns.isascii() and columns.isdigit() and int(columns) > 0
    on_terminal = (sys.stderr if stderr else sys.stdout).isatty()
    return _Console(stderr=stderr, highlight=False, emoji=False, width=int(columns) if given else None if on_terminal else PIPE_WIDTH)


class Commands(TyperGroup):
    """A group of commands whose help lists them by section."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write each section, with the commands' summaries below one another."""
        shown = {name: command for name in self.list_commands(ctx) if (command := self.get_command(ctx, name)) and not command.hidden}
        sections = {title: names.split() for title, names in SECTIONS.items()}
        listed = {name for names in sections.values() for name in names}
        sections["Other"] = [name for name in shown if name not in listed]
        longest = max(map(len, shown))
        for title, names in sections.items():
            rows = [(name.ljust(longest), shown[name].get_short_help_str(formatter.width - 6 - longest)) for name in names if name in shown]
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)
