"""A figure of a report: one Plotly figure in plain JSON values, and functions for several kinds of figures.

Colours have names; the page defines them for light and dark mode. What a colour shows is also shown by the shape of a marker or line. If
there is too much data to draw, a sample is drawn, and the figure's note says so.

We do not use optuna.visualization: its slices and fronts omit stopped trials, its colours are fixed, and its parallel coordinates need
WebGL programs made from text, which the page's Content-Security-Policy forbids.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

T = TypeVar("T")

DOTS = 1500
"""Maximum number of dots in a figure."""

SYMBOLS = {
    "completed": "circle",
    "stopped": "square-open",
    "diverged": "x",
    "failed": "cross",
    "interrupted": "diamond-open",
    "running": "star",
    "held": "star",
    "waiting": "star",
}


@dataclass(frozen=True)
class Picture:
    """One Plotly figure."""

    title: str
    alt: str
    """What it shows, as text for people who cannot see it."""
    data: list[dict[str, Any]]
    layout: dict[str, Any] = field(default_factory=dict)
    note: str = ""
    """What was left out."""
    height: int = 380
    wide: bool = True
    """Whether it takes the whole width of the page, or is beside others."""
    broad: bool = False
    """Whether it is scrolled sideways on a narrow screen, instead of made narrower."""


def thinned(items: Sequence[T], most: int, best: int = 0) -> tuple[list[T], str]:
    """At most `most` items in their order: the first `best`, and a sample of the others (fixed seed). The text says what was left out."""
    if len(items) <= most:
        return list(items), ""
    chosen = random.Random(0).sample(range(best, len(items)), most - best)  # noqa: S311 -- which dots are drawn, not a secret
    how = f"the best {best} and a sample" if best else "a sample"
    return [items[i] for i in (*range(best), *sorted(chosen))], f"{most:,} of {len(items):,} ({how})"


def dots_trace(x: Sequence[Any], y: Sequence[Any], trials: Sequence[int], outcome: str, name: str) -> dict[str, Any]:
    """A trace with one dot for each trial. Its marker shows how the trials ended."""
    marker = {"color": f"${outcome}", "symbol": SYMBOLS[outcome], "size": 7 if outcome == "completed" else 6}
    trace = {"type": "scatter", "mode": "markers", "x": list(x), "y": list(y), "customdata": list(trials), "marker": marker, "name": name}
    return trace | {
        "opacity": 0.8 if outcome == "completed" else 0.65,
        "hovertemplate": "trial %{customdata}: %{y:.4f} at %{x}<extra></extra>",
    }


def joined_lines(lines: Iterable[tuple[Sequence[Any], Sequence[Any], int]]) -> tuple[list[Any], list[Any], list[Any]]:
    """Many lines as one trace, with gaps between them. A page with one trace for each line would be too slow to scroll."""
    x: list[Any] = []
    y: list[Any] = []
    who: list[Any] = []
    for xs, ys, number in lines:
        x += [*xs, None]
        y += [*ys, None]
        who += [number] * (len(xs) + 1)
    return x, y, who


def log_ticks(low: float, high: float) -> dict[str, Any]:
    """Positions and labels of ticks on a logarithmic axis. Plotly's own labels are only the first digit."""
    digits = (1,) if high / low > 1000 else (1, 3) if high / low > 30 else (1, 2, 5)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    values = [float(f"{digit}e{power}") for power in powers for digit in digits if low / 1.3 <= float(f"{digit}e{power}") <= high * 1.3]
    return {"tickvals": values, "ticktext": [_in_units(value) for value in values]}


def _in_units(value: float) -> str:
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.3g}"


def value_label(value: Any) -> str:
    """A parameter's value for an axis."""
    return f"{value:.3g}" if isinstance(value, float) else str(value).lower() if value is None or isinstance(value, bool) else str(value)
