"""Figures about parameters and the metric: importance, parallel coordinates, slices."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

from vit_search.config.distributions import Choice
from vit_search.config.space import Space
from vit_search.ledger.trials import Trial
from vit_search.planning.next_search_file import GOOD_SHARE, position
from vit_search.report.digest import Digest, sound
from vit_search.report.importance import Importance
from vit_search.report.picture import DOTS, Picture, dots_trace, joined_lines, log_ticks, thinned, value_label

LINES = 80
"""Maximum number of lines of the best trials in parallel coordinates. The others get at most twice as many."""

SLICES = 12
"""Maximum number of parameters with a slice, and with an axis in parallel coordinates."""


def importance(by_search: Mapping[str, Sequence[Importance]]) -> Picture:
    """Bars with their error, for each search by name."""
    data: list[dict[str, Any]] = []
    names = list(dict.fromkeys(one.parameter for ones in by_search.values() for one in ones))
    for i, (search, ones) in enumerate(by_search.items()):
        error = {
            "type": "data", "symmetric": False, "color": "$text", "thickness": 1.5,
            "array": [one.interval[1] - one.share for one in ones], "arrayminus": [one.share - one.interval[0] for one in ones],
        }  # fmt: skip
        data.append(
            {"type": "bar", "orientation": "h", "x": [one.share for one in ones], "y": [one.parameter for one in ones], "error_x": error}
            | {
                "marker": {"color": "$completed" if len(by_search) == 1 else f"${'ab'[i]}", "pattern": {"shape": ("", "/")[i]}},
                "name": search,
            }
            | {"showlegend": len(by_search) > 1, "hovertemplate": "%{y}: %{x:.0%}<extra></extra>"}
        )
    layout = {
        "xaxis": {"title": {"text": "share"}, "tickformat": ".0%", "rangemode": "tozero"},
        "yaxis": {"autorange": "reversed", "type": "category", "categoryorder": "array", "categoryarray": names, "ticksuffix": "  "},
        "barmode": "group",
    }
    return Picture(
        "importance", "Importance of each parameter with its error.", data, layout, height=130 + 34 * len(names) * len(by_search)
    )


def parallel(d: Digest, names: Sequence[str]) -> Picture:
    """One line for each trial, through its parameters and its metric. The best fifth is in front."""
    shown = list(names)[:SLICES]
    trials = [t for t in d.standing if t.over and sound(t, d.metric)]
    count = max(1, math.ceil(GOOD_SHARE * len(trials))) if trials else 0
    best, note = thinned(trials[1:count], LINES, LINES // 4)
    rest, other = thinned(trials[count:], 2 * LINES)
    values = [v for t in trials if (v := t.value(d.metric)) is not None]
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    rng = random.Random(0)  # noqa: S311 -- moves lines apart, not a secret

    def line(trial: Trial) -> tuple[list[int], list[float | None], int]:
        places = [_axis_position(d.space, name, trial.params, rng) for name in shown]
        value = trial.value(d.metric) or 0.0
        return list(range(len(shown) + 1)), [*places, (value - low) / (high - low) if high > low else 0.5], trial.number

    data: list[dict[str, Any]] = []
    groups = (
        (rest, "others", "$stopped", 0.4, 1, "dot"),
        (best, "best fifth", "$completed", 0.6, 1.5, "solid"),
        (trials[:1], "best", "$best", 1, 3, "solid"),
    )
    for ones, name, colour, opacity, width, dash in groups:
        if ones:
            x, y, who = joined_lines(line(t) for t in ones)
            stroke = {"color": colour, "width": width, "dash": dash}
            data.append(
                {"type": "scatter", "mode": "lines", "x": x, "y": y, "customdata": who, "line": stroke, "opacity": opacity, "name": name}
            )
            data[-1]["hovertemplate"] = "trial %{customdata}<extra></extra>"
    marks = [_axis_label(i, at, text) for i, name in enumerate(shown) for at, text in _axis_labels(d.space, name)]
    marks += [_axis_label(len(shown), 0.0, f"{low:.3g}"), _axis_label(len(shown), 1.0, f"{high:.3g}")]
    layout = {
        "xaxis": {
            "tickvals": list(range(len(shown) + 1)), "ticktext": [*shown, d.metric], "tickangle": -30,
            "showgrid": True, "gridcolor": "$muted", "range": [-0.3, len(shown) + 0.4],
        },
        "yaxis": {"visible": False, "range": [-0.08, 1.08]},
        "annotations": marks,
        "margin": {"b": 90, "l": 60, "r": 40},
    }  # fmt: skip
    notes = [f"{what}: {n} drawn." for n, what in ((note, "best fifth"), (other, "others")) if n]
    notes += [f"{len(names) - SLICES} less important parameters are left out."] if len(names) > SLICES else []
    return Picture(
        "parallel coordinates",
        "Parameters and metric of each trial as one line; the best fifth stands out.",
        data,
        layout,
        " ".join(notes),
        460,
        broad=True,
    )


def slices(d: Digest, names: Sequence[str]) -> list[Picture]:
    """The metric over each single parameter."""
    trials = [t for t in d.standing if t.value(d.metric) is not None and t.outcome not in ("diverged", "failed")]
    pictures = []
    for name in list(names)[:SLICES]:
        parameter, data, notes = d.space.searched[name], [], []
        for outcome, label in (("stopped", "stopped and others"), ("completed", "full length")):
            ones = [t for t in trials if (t.outcome == "completed") == (outcome == "completed") and name in t.params]
            some, note = thinned(ones, DOTS // 2, 20)
            notes += [f"{label}: {note} drawn."] if note else []
            x: list[Any] = [value_label(t.params[name]) if isinstance(parameter, Choice) else t.params[name] for t in some]
            data.append(dots_trace(x, [t.value(d.metric) for t in some], [t.number for t in some], outcome, label))
        if isinstance(parameter, Choice):
            kind: dict[str, Any] = {
                "type": "category",
                "categoryorder": "array",
                "categoryarray": [value_label(c) for c in parameter.choice],
            }
        else:
            kind = {"type": "log", **log_ticks(*map(float, parameter.range))} if parameter.log else {"type": "linear", "nticks": 6}
        layout = {"xaxis": {"title": {"text": name}, **kind}, "yaxis": {"title": {"text": d.metric}}}
        pictures.append(Picture(name, f"{d.metric} over {name}.", data, layout, " ".join(notes), 320, wide=False))
    return pictures


def _axis_position(space: Space, name: str, params: Mapping[str, Any], rng: random.Random) -> float | None:
    parameter = space.searched[name]
    if name not in params:
        return None
    apart = rng.uniform(-0.02, 0.02)
    if isinstance(parameter, Choice):
        return (parameter.choice.index(params[name]) + 0.5) / len(parameter.choice) + apart
    return position(parameter, params[name])


def _axis_labels(space: Space, name: str) -> list[tuple[float, str]]:
    parameter = space.searched[name]
    if isinstance(parameter, Choice):
        count = len(parameter.choice)
        return [((i + 0.5) / count, value_label(c)) for i, c in enumerate(parameter.choice)] if count <= 12 else []
    return [(0.0, f"{parameter.range[0]:.3g}"), (1.0, f"{parameter.range[1]:.3g}")]


def _axis_label(x: int, y: float, text: str) -> dict[str, Any]:
    return {"x": x, "y": y, "text": text, "showarrow": False, "xanchor": "left", "xshift": 4, "font": {"size": 11}, "bgcolor": "$veil"}
