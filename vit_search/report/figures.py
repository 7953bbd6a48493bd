"""The pictures of a report as Plotly figures in plain JSON values; colours are named, and the page knows them in light and dark.

Drawn by hand rather than by optuna.visualization: its slices and fronts leave out trials that were stopped, its colours are
fixed, and its parallel coordinates need WebGL programs made from text, which the page's Content-Security-Policy forbids. What is
told by colour is told by a marker's or line's shape, too. What is too much to draw is thinned, and the picture's note says so.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from vit_search.config.space import Choice, Space
from vit_search.ledger.trials import Trial
from vit_search.planning.next_file import GOOD_SHARE, position
from vit_search.report.digest import Bar, Digest, Step, sound
from vit_search.report.importance import Importance

T = TypeVar("T")

DOTS = 1500
"""Dots in a picture at most."""

CURVES = 100
"""Learning curves of full-length trials drawn at most, and half as many again of the others."""

LINES = 80
"""Lines of the best trials in the parallel coordinates at most, and twice as many of the others."""

SLICES = 12
"""Parameters that get a slice, and an axis in the parallel coordinates, at most."""

BARS = 600
"""Stretches in the timeline at most: the latest."""

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
PATTERNS = {"completed": "", "stopped": "/", "diverged": "x", "failed": "+", "interrupted": "."} | dict.fromkeys(
    ("running", "held", "waiting"), "-"
)
COSTS = {"params": "parameters", "forward_flops": "FLOPs an image", "latency_ms": "latency in ms"}


@dataclass(frozen=True)
class Picture:
    """One Plotly figure."""

    title: str
    alt: str
    """What it shows, for whoever does not see it."""
    data: list[dict[str, Any]]
    layout: dict[str, Any] = field(default_factory=dict)
    note: str = ""
    """What was left out."""
    height: int = 380
    wide: bool = True
    """Whether it takes the whole width of the page, or stands beside others."""
    broad: bool = False
    """Whether it is moved sideways on a narrow screen rather than squeezed."""


def progress(digests: Sequence[Digest]) -> list[Picture]:
    """Best so far over trials, over time and over device-hours: of one search, or of several in one picture."""
    pictures = []
    for what, label in (("ended", "trials ended"), ("hours", "hours at work"), ("device_hours", "device-hours")):
        data: list[dict[str, Any]] = []
        notes = []
        for i, d in enumerate(digests):
            colour, name = ("$best", "best so far") if len(digests) == 1 else (f"${'ab'[i]}", d.name)
            if len(digests) == 1:
                dots, note = _thinned(d.steps, DOTS)
                notes.append(note and f"dots: {note} drawn; the line is of all.")
                data.append(
                    _dots(
                        [getattr(s, what) for s in dots],
                        [s.value for s in dots],
                        [s.trial for s in dots],
                        "completed",
                        "full-length trials",
                    )
                )
            better = better_ones(d.steps)
            end = {"ended": len([t for t in d.standing if t.over]), "hours": d.spent.wall_seconds / 3600}
            last = end.get(what, d.spent.device_seconds(d.devices) / 3600)
            x, y = [getattr(s, what) for s in better], [s.best for s in better]
            if better:
                x, y = [*x, max(last, x[-1])], [*y, y[-1]]
            line = {"color": colour, "width": 2.5, "shape": "hv", "dash": ("solid", "dash")[i]}
            data.append({"type": "scatter", "mode": "lines", "x": x, "y": y, "line": line, "name": name})
        first = digests[0]
        pictures.append(
            Picture(
                f"over {label}",
                f"Best {first.metric} of full-length trials so far over {label}.",
                data,
                {"xaxis": {"title": {"text": label}, "rangemode": "tozero"}, "yaxis": {"title": {"text": first.metric}}},
                " ".join(note for note in notes if note),
                height=340,
                wide=False,
            )
        )
    return pictures


def curves(digests: Sequence[Digest]) -> Picture:
    """The metric over epochs; stopped trials faded, the winner on top."""
    data: list[dict[str, Any]] = []
    notes = []
    for i, d in enumerate(digests):
        mark = "" if len(digests) == 1 else f"{d.name}: "
        full = [t for t in d.standing if t.outcome == "completed"]
        short = [t for t in d.standing if t.outcome != "completed" and t.results]
        share = CURVES // len(digests)
        some, note = _thinned(full[1:], share, share // 4)
        faded, other = _thinned(short, share + share // 2)
        notes += [f"{mark}{what}: {n} drawn." for n, what in ((note, "full length"), (other, "stopped and others")) if n]
        colours = ("$stopped", "$completed", "$best") if len(digests) == 1 else (f"${'ab'[i]}",) * 3
        groups = (
            (faded, "stopped and others", 0.45, 1.2, "dot"),
            (some, "full length", 0.55, 1, "solid"),
            (full[:1], "best", 1, 3.5, ("solid", "dash")[i]),
        )
        for (trials, name, opacity, width, dash), colour in zip(groups, colours, strict=True):
            if trials:
                x, y, who = _joined(
                    ([r.epoch for r in t.results], [_finite(r.value(d.metric)) for r in t.results], t.number) for t in trials
                )
                line = {"color": colour, "width": width, "dash": dash}
                data.append(
                    {
                        "type": "scatter",
                        "mode": "lines+markers" if d.spec.epochs == 1 else "lines",
                        "x": x,
                        "y": y,
                        "customdata": who,
                        "line": line,
                        "opacity": opacity,
                        "name": mark + name,
                    }
                    | {"hovertemplate": "trial %{customdata}, epoch %{x}: %{y:.4f}<extra></extra>"}
                )
    metric = digests[0].metric
    layout = {"xaxis": {"title": {"text": "epoch"}, "rangemode": "tozero"}, "yaxis": {"title": {"text": metric}}}
    return Picture(
        "learning curves",
        f"{metric} of each trial over its epochs; stopped trials are faded and dotted.",
        data,
        layout,
        " ".join(notes),
        440,
    )


def importance(found: Mapping[str, Sequence[Importance]]) -> Picture:
    """Bars with their error, for each search by its name."""
    data: list[dict[str, Any]] = []
    names = list(dict.fromkeys(one.parameter for ones in found.values() for one in ones))
    for i, (search, ones) in enumerate(found.items()):
        error = {
            "type": "data", "symmetric": False, "color": "$text", "thickness": 1.5,
            "array": [one.interval[1] - one.share for one in ones], "arrayminus": [one.share - one.interval[0] for one in ones],
        }  # fmt: skip
        data.append(
            {"type": "bar", "orientation": "h", "x": [one.share for one in ones], "y": [one.parameter for one in ones], "error_x": error}
            | {"marker": {"color": "$completed" if len(found) == 1 else f"${'ab'[i]}", "pattern": {"shape": ("", "/")[i]}}, "name": search}
            | {"showlegend": len(found) > 1, "hovertemplate": "%{y}: %{x:.0%}<extra></extra>"}
        )
    layout = {
        "xaxis": {"title": {"text": "share"}, "tickformat": ".0%", "rangemode": "tozero"},
        "yaxis": {"autorange": "reversed", "type": "category", "categoryorder": "array", "categoryarray": names, "ticksuffix": "  "},
        "barmode": "group",
    }
    return Picture("importance", "Importance of each parameter with its error.", data, layout, height=130 + 34 * len(names) * len(found))


def parallel(d: Digest, names: Sequence[str]) -> Picture:
    """A line for each trial through its parameters and its metric; the best fifth in front."""
    shown = list(names)[:SLICES]
    trials = [t for t in d.standing if t.over and sound(t, d.metric)]
    count = max(1, math.ceil(GOOD_SHARE * len(trials))) if trials else 0
    best, note = _thinned(trials[1:count], LINES, LINES // 4)
    rest, other = _thinned(trials[count:], 2 * LINES)
    values = [v for t in trials if (v := t.value(d.metric)) is not None]
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    rng = random.Random(0)  # noqa: S311 -- moves lines apart, no secret

    def line(trial: Trial) -> tuple[list[int], list[float | None], int]:
        places = [_place(d.space, name, trial.params, rng) for name in shown]
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
            x, y, who = _joined(line(t) for t in ones)
            stroke = {"color": colour, "width": width, "dash": dash}
            data.append(
                {"type": "scatter", "mode": "lines", "x": x, "y": y, "customdata": who, "line": stroke, "opacity": opacity, "name": name}
            )
            data[-1]["hovertemplate"] = "trial %{customdata}<extra></extra>"
    marks = [_mark(i, at, text) for i, name in enumerate(shown) for at, text in _marks(d.space, name)]
    marks += [_mark(len(shown), 0.0, f"{low:.3g}"), _mark(len(shown), 1.0, f"{high:.3g}")]
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
    """The metric over each parameter alone."""
    trials = [t for t in d.standing if t.value(d.metric) is not None and t.outcome not in ("diverged", "failed")]
    pictures = []
    for name in list(names)[:SLICES]:
        parameter, data, notes = d.space.searched[name], [], []
        for outcome, label in (("stopped", "stopped and others"), ("completed", "full length")):
            ones = [t for t in trials if (t.outcome == "completed") == (outcome == "completed") and name in t.params]
            some, note = _thinned(ones, DOTS // 2, 20)
            notes += [f"{label}: {note} drawn."] if note else []
            x: list[Any] = [_spelt(t.params[name]) if isinstance(parameter, Choice) else t.params[name] for t in some]
            data.append(_dots(x, [t.value(d.metric) for t in some], [t.number for t in some], outcome, label))
        if isinstance(parameter, Choice):
            kind: dict[str, Any] = {"type": "category", "categoryorder": "array", "categoryarray": [_spelt(c) for c in parameter.choice]}
        else:
            kind = {"type": "log", **_log_ticks(*map(float, parameter.range))} if parameter.log else {"type": "linear", "nticks": 6}
        layout = {"xaxis": {"title": {"text": name}, **kind}, "yaxis": {"title": {"text": d.metric}}}
        pictures.append(Picture(name, f"{d.metric} over {name}.", data, layout, " ".join(notes), 320, wide=False))
    return pictures


def costs(digests: Sequence[Digest]) -> list[Picture]:
    """The metric against what a model costs, with the Pareto front of full-length trials."""
    pictures = []
    for what, label in COSTS.items():
        data: list[dict[str, Any]] = []
        notes = []
        for i, d in enumerate(digests):
            mark = "" if len(digests) == 1 else f"{d.name}: "
            priced = [
                (t, c, v)
                for t in d.standing
                if sound(t, d.metric) and (c := _cost(d, t, what)) is not None and (v := t.value(d.metric)) is not None
            ]
            for outcome, name in (("stopped", "stopped and others"), ("completed", "full length")):
                ones = [one for one in priced if (one[0].outcome == "completed") == (outcome == "completed")]
                if len(digests) > 1 and outcome == "stopped":
                    continue
                some, note = _thinned(ones, DOTS // 2, 20)
                notes += [f"{mark}{name}: {note} drawn."] if note else []
                dots = _dots([c for _, c, _ in some], [v for _, _, v in some], [t.number for t, _, _ in some], outcome, mark + name)
                if len(digests) > 1:
                    dots["marker"] |= {"color": f"${'ab'[i]}", "symbol": ("circle", "diamond-open")[i]}
                data.append(dots)
            front = frontier([(c, v) for t, c, v in priced if t.outcome == "completed"], d.spec.mode)
            colour = "$best" if len(digests) == 1 else f"${'ab'[i]}"
            line = {"color": colour, "width": 2, "shape": "hv", "dash": ("solid", "dash")[i]}
            data.append(
                {
                    "type": "scatter",
                    "mode": "lines+markers",
                    "x": [c for c, _ in front],
                    "y": [v for _, v in front],
                    "line": line,
                    "marker": {"size": 5},
                    "name": f"{mark}front",
                }
            )
        spent = [cost for trace in data for cost in trace["x"]]
        if spent:
            metric = digests[0].metric
            layout = {
                "xaxis": {"title": {"text": label}, "type": "log", **_log_ticks(min(spent), max(spent))},
                "yaxis": {"title": {"text": metric}},
            }
            pictures.append(
                Picture(
                    f"against {label}", f"{metric} against {label}, with the Pareto front.", data, layout, " ".join(notes), 360, wide=False
                )
            )
    return pictures


def frontier(points: Iterable[tuple[float, float]], mode: str) -> list[tuple[float, float]]:
    """The Pareto front of (cost, metric), the cheapest first."""
    sign = 1.0 if mode == "max" else -1.0
    found: list[tuple[float, float]] = []
    for cost, value in sorted(points, key=lambda point: (point[0], -sign * point[1])):
        if not found or sign * value > sign * found[-1][1]:
            found.append((cost, value))
    return found


def survival(digests: Sequence[Digest]) -> Picture:
    """How many trials came to each rung, by stratum."""
    data = []
    shapes = itertools.cycle(("", "/", "x", "-", ".", "+", "|", "\\"))
    colours = itertools.cycle(("$completed", "$best", "$running", "$failed", "$stopped"))
    for i, d in enumerate(digests):
        for one in d.survival:
            counts = list(one.reached.values())
            name = one.label if len(digests) == 1 else d.name if len(d.survival) == 1 else f"{d.name}: {one.label}"
            look = {
                "color": next(colours) if len(digests) == 1 or len(d.survival) > 1 else f"${'ab'[i]}",
                "pattern": {"shape": next(shapes)},
            }
            x = ["begun" if epoch == 0 else f"epoch {epoch}" for epoch in one.reached]
            data.append(
                {
                    "type": "bar",
                    "x": x,
                    "y": counts,
                    "marker": look,
                    "name": name,
                    "text": [str(n) for n in counts],
                    "textposition": "outside",
                    "cliponaxis": False,
                }
            )
    shown = len(data) > 1
    layout = {
        "xaxis": {"type": "category"},
        "yaxis": {"title": {"text": "trials"}, "rangemode": "tozero"},
        "barmode": "group",
        "showlegend": shown,
    }
    return Picture("survival", "Trials that reached each rung.", data, layout)


def busy(digests: Sequence[Digest]) -> Picture:
    """How many trials trained at a time."""
    data: list[dict[str, Any]] = []
    for i, d in enumerate(digests):
        colour = "$completed" if len(digests) == 1 else f"${'ab'[i]}"
        line = {"color": colour, "width": 2, "shape": "hvh", "dash": ("solid", "dash")[i]}
        trace = {"type": "scatter", "mode": "lines", "x": [x for x, _ in d.busy], "y": [y for _, y in d.busy], "line": line}
        data.append(trace | {"name": d.name, "showlegend": len(digests) > 1})
    layout = {
        "xaxis": {"title": {"text": "hours at work"}, "rangemode": "tozero"},
        "yaxis": {"title": {"text": "trials training"}, "rangemode": "tozero"},
    }
    return Picture(
        "trials training at a time",
        "Trials that trained at a time, on average, in a hundredth of the search each.",
        data,
        layout,
        height=280,
    )


def timeline(d: Digest) -> Picture:
    """Each trial's stretch on a device."""
    shown: Sequence[Bar] = sorted(d.bars, key=lambda bar: bar.end)[-BARS:]
    data = []
    for outcome, pattern in PATTERNS.items():
        bars = [bar for bar in shown if bar.outcome == outcome]
        if bars:
            data.append(
                {"type": "bar", "orientation": "h", "base": [bar.start for bar in bars], "x": [bar.end - bar.start for bar in bars]}
                | {"y": [bar.lane + 1 for bar in bars], "customdata": [bar.trial for bar in bars], "name": outcome}
                | {
                    "marker": {
                        "color": "$running" if outcome in ("held", "waiting") else f"${outcome}",
                        "line": {"color": "$page", "width": 1},
                        "pattern": {"shape": pattern, "size": 6, "fillmode": "overlay", "fgopacity": 0.4, "fgcolor": "$page"},
                    }
                }
                | {"hovertemplate": "trial %{customdata}: %{x:.3f} h<extra>" + outcome + "</extra>"}
            )
    lanes = 1 + max((bar.lane for bar in shown), default=0)
    layout = {
        "xaxis": {"title": {"text": "hours at work"}},
        "yaxis": {"title": {"text": "place"}, "autorange": "reversed", "dtick": max(1, lanes // 8)},
        "barmode": "overlay",
        "bargap": 0.15,
    }
    note = f"the latest {len(shown):,} of {len(d.bars):,} stretches drawn." if len(shown) < len(d.bars) else ""
    return Picture(
        "timeline", "When each trial trained, by the place that it took, and how it ended.", data, layout, note, 170 + min(420, 24 * lanes)
    )


def better_ones(steps: Iterable[Step]) -> list[Step]:
    """Those steps at which the best so far changed."""
    found: list[Step] = []
    for step in steps:
        if not found or step.best != found[-1].best:
            found.append(step)
    return found


def _thinned(items: Sequence[T], most: int, best: int = 0) -> tuple[list[T], str]:
    """At most so many, in their order: the first `best`, and of the others a sample from a fixed seed; and what to say of it."""
    if len(items) <= most:
        return list(items), ""
    chosen = random.Random(0).sample(range(best, len(items)), most - best)  # noqa: S311 -- which dots are drawn, no secret
    how = f"the best {best} and a sample" if best else "a sample"
    return [items[i] for i in (*range(best), *sorted(chosen))], f"{most:,} of {len(items):,} ({how})"


def _dots(x: Sequence[Any], y: Sequence[Any], trials: Sequence[int], outcome: str, name: str) -> dict[str, Any]:
    marker = {"color": f"${outcome}", "symbol": SYMBOLS[outcome], "size": 7 if outcome == "completed" else 6}
    trace = {"type": "scatter", "mode": "markers", "x": list(x), "y": list(y), "customdata": list(trials), "marker": marker, "name": name}
    return trace | {
        "opacity": 0.8 if outcome == "completed" else 0.65,
        "hovertemplate": "trial %{customdata}: %{y:.4f} at %{x}<extra></extra>",
    }


def _joined(lines: Iterable[tuple[Sequence[Any], Sequence[Any], int]]) -> tuple[list[Any], list[Any], list[Any]]:
    """Many lines as one trace, parted by gaps: a page with one trace for each would not scroll."""
    x: list[Any] = []
    y: list[Any] = []
    who: list[Any] = []
    for xs, ys, number in lines:
        x += [*xs, None]
        y += [*ys, None]
        who += [number] * (len(xs) + 1)
    return x, y, who


def _place(space: Space, name: str, params: Mapping[str, Any], rng: random.Random) -> float | None:
    parameter = space.searched[name]
    if name not in params:
        return None
    apart = rng.uniform(-0.02, 0.02)
    if isinstance(parameter, Choice):
        return (parameter.choice.index(params[name]) + 0.5) / len(parameter.choice) + apart
    return position(parameter, params[name])


def _marks(space: Space, name: str) -> list[tuple[float, str]]:
    parameter = space.searched[name]
    if isinstance(parameter, Choice):
        count = len(parameter.choice)
        return [((i + 0.5) / count, _spelt(c)) for i, c in enumerate(parameter.choice)] if count <= 12 else []
    return [(0.0, f"{parameter.range[0]:.3g}"), (1.0, f"{parameter.range[1]:.3g}")]


def _mark(x: int, y: float, text: str) -> dict[str, Any]:
    return {"x": x, "y": y, "text": text, "showarrow": False, "xanchor": "left", "xshift": 4, "font": {"size": 11}, "bgcolor": "$veil"}


def _cost(d: Digest, trial: Trial, what: str) -> float | None:
    return trial.value(what) if what == "latency_ms" else float(getattr(d.costs[trial.number], what))


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _log_ticks(low: float, high: float) -> dict[str, Any]:
    """Where a logarithmic axis has its marks, spelt out: Plotly shortens them to their first digit."""
    digits = (1,) if high / low > 1000 else (1, 3) if high / low > 30 else (1, 2, 5)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    values = [float(f"{digit}e{power}") for power in powers for digit in digits if low / 1.3 <= float(f"{digit}e{power}") <= high * 1.3]
    return {"tickvals": values, "ticktext": [_in_units(value) for value in values]}


def _in_units(value: float) -> str:
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.3g}"


def _spelt(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value).lower() if value is None or isinstance(value, bool) else str(value)
