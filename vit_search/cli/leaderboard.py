"""The leaderboard as lines of text that fit a width: a table of scores, with the parameters beside or below each trial."""

from __future__ import annotations

from dataclasses import dataclass

from vit_search.cli.terminal import OUTCOME_STYLE, escaped
from vit_search.config.search_file import SearchSpec
from vit_search.ledger import searches
from vit_search.ledger.trials import Trial
from vit_search.planning.space_findings import with_effect
from vit_search.text import one_line, value_text

INDENT = 4
"""Columns before a trial's parameters if they are below its scores."""


@dataclass(frozen=True)
class _Column:
    """One column of the table."""

    name: str
    cells: list[str]
    left: bool = False

    @property
    def width(self) -> int:
        return max(map(len, [self.name, *self.cells]))

    @property
    def same(self) -> bool:
        """Whether several rows all have the same value."""
        return len(self.cells) > 1 and len(set(self.cells)) == 1

    def padded(self, text: str) -> str:
        return text.ljust(self.width) if self.left else text.rjust(self.width)


def lines(name: str, trials: list[Trial], spec: SearchSpec, *, top: int, width: int) -> list[str]:
    """The best trials as lines of rich's markup.

    Values that are equal in all rows are listed once, above the table. Parameters are columns of the table if they fit; otherwise each
    trial has them on lines below it.

    Args:
        trials: ranked.
        top: number of rows; 0 or less for all trials.
        width: columns of the terminal.
    """
    shown = trials if top <= 0 else trials[:top]
    scores = _scores(spec, shown, searches.pareto(spec, trials))
    facts = [_Column("outcome", [trial.outcome for trial in shown], left=True), _Column("epochs", [str(len(t.results)) for t in shown])]
    trained = [with_effect(spec.space, trial.params) for trial in shown]
    params = [
        _Column(one_line(key), [value_text(values[key]) if key in values else "–" for values in trained]) for key in spec.space.searched
    ]
    same = [f"{column.name} {column.cells[0]}" for column in (*facts, *params) if column.same]
    table = [*scores, *(column for column in facts if not column.same)]
    params = [column for column in params if not column.same]
    text = [f"[bold]{escaped(f'{name}: {spec.metric}, {spec.mode}')}[/]"]
    if same:
        text += _wrapped(["in all rows:", *_listed(same)], width, indent=0)
    if _width([*table, *params]) <= width:
        text += [_row([*table, *params], i) for i in range(-1, len(shown))]
    else:
        text.append(_row(table, -1))
        for i in range(len(shown)):
            text.append(_row(table, i))
            text += _wrapped(_listed([f"{column.name} {column.cells[i]}" for column in params]), width, indent=INDENT)
    if len(shown) < len(trials):
        text.append(f"[dim]{escaped(f'{len(trials) - len(shown)} more: vit-search show {name} --top 0')}[/]")
    return text


def _scores(spec: SearchSpec, shown: list[Trial], ahead: set[int]) -> list[_Column]:
    """Columns for rank, trial, metric and objectives. A star marks trials that no other full-length trial beats in all objectives."""
    values = [trial.value(spec.metric) for trial in shown]
    columns = [
        _Column("#", [str(rank) for rank in range(1, len(shown) + 1)]),
        _Column("trial", [str(trial.number) for trial in shown]),
        _Column(spec.metric, ["–" if value is None else f"{value:.4f}" for value in values]),
    ]
    if spec.objectives:
        points = [searches.objective_values(spec, trial) for trial in shown]
        for i, goal in enumerate(spec.objectives, 1):
            columns.append(_Column(goal.metric, ["–" if point is None else _objective(point[i]) for point in points]))
        columns.append(_Column("front", ["*" if trial.number in ahead else "" for trial in shown], left=True))
    return columns


def _objective(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _width(columns: list[_Column]) -> int:
    return sum(column.width for column in columns) + 2 * (len(columns) - 1)


def _row(columns: list[_Column], i: int) -> str:
    """Row i; -1 is the header."""
    if i < 0:
        return f"[dim]{escaped('  '.join(column.padded(column.name) for column in columns).rstrip())}[/]"
    padded = [column.padded(column.cells[i]) for column in columns]
    padded[-1] = padded[-1].rstrip()
    return "  ".join(_styled(column, column.cells[i], text) for column, text in zip(columns, padded, strict=True))


def _styled(column: _Column, cell: str, padded: str) -> str:
    style = OUTCOME_STYLE.get(cell, "") if column.name == "outcome" else "bold green" if cell == "*" else ""
    return f"[{style}]{escaped(padded)}[/]" if style else escaped(padded)


def _listed(parts: list[str]) -> list[str]:
    return [f"{part}," for part in parts[:-1]] + parts[-1:]


def _wrapped(parts: list[str], width: int, *, indent: int) -> list[str]:
    """Join parts into lines of a width. No part is broken."""
    text: list[str] = []
    for part in parts:
        if text and len(text[-1]) + 1 + len(part) <= width:
            text[-1] += f" {part}"
        else:
            text.append(" " * (indent if not text or indent else INDENT) + part)
    return [escaped(line) for line in text]
