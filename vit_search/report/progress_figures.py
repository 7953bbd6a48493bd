"""Figures about the course of a search: best value so far, learning curves, cost, survival, devices over time."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any

from vit_search.ledger.trials import Trial
from vit_search.report.digest import Bar, Digest, Step, sound
from vit_search.report.picture import DOTS, Picture, dots_trace, joined_lines, log_ticks, thinned

CURVES = 100
"""Maximum number of learning curves of full-length trials. The others get half as many more."""

BARS = 600
"""Maximum number of periods in the timeline: the latest ones."""

PATTERNS = {"completed": "", "stopped": "/", "diverged": "x", "failed": "+", "interrupted": "."} | dict.fromkeys(
    ("running", "held", "waiting"), "-"
)

COSTS = {"params": "parameters", "forward_flops": "FLOPs an image", "latency_ms": "latency in ms"}


def progress(digests: Sequence[Digest]) -> list[Picture]:
    """Best value so far over trials, time and device-hours. For one search, or for two in one figure."""
    pictures = []
    for what, label in (("ended", "trials ended"), ("hours", "hours at work"), ("device_hours", "device-hours")):
        data: list[dict[str, Any]] = []
        notes = []
        for i, d in enumerate(digests):
            colour, name = ("$best", "best so far") if len(digests) == 1 else (f"${'ab'[i]}", d.name)
            if len(digests) == 1:
                dots, note = thinned(d.steps, DOTS)
                notes.append(note and f"dots: {note} drawn; the line is of all.")
                data.append(
                    dots_trace(
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
    """The metric over epochs. Stopped trials are faded, and the winner is on top."""
    data: list[dict[str, Any]] = []
    notes = []
    for i, d in enumerate(digests):
        mark = "" if len(digests) == 1 else f"{d.name}: "
        full = [t for t in d.standing if t.outcome == "completed"]
        short = [t for t in d.standing if t.outcome != "completed" and t.results]
        share = CURVES // len(digests)
        some, note = thinned(full[1:], share, share // 4)
        faded, other = thinned(short, share + share // 2)
        notes += [f"{mark}{what}: {n} drawn." for n, what in ((note, "full length"), (other, "stopped and others")) if n]
        colours = ("$stopped", "$completed", "$best") if len(digests) == 1 else (f"${'ab'[i]}",) * 3
        groups = (
            (faded, "stopped and others", 0.45, 1.2, "dot"),
            (some, "full length", 0.55, 1, "solid"),
            (full[:1], "best", 1, 3.5, ("solid", "dash")[i]),
        )
        for (trials, name, opacity, width, dash), colour in zip(groups, colours, strict=True):
            if trials:
                x, y, who = joined_lines(
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


def costs(digests: Sequence[Digest]) -> list[Picture]:
    """The metric against the cost of a model, with the Pareto front of full-length trials."""
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
                some, note = thinned(ones, DOTS // 2, 20)
                notes += [f"{mark}{name}: {note} drawn."] if note else []
                dots = dots_trace([c for _, c, _ in some], [v for _, _, v in some], [t.number for t, _, _ in some], outcome, mark + name)
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
                "xaxis": {"title": {"text": label}, "type": "log", **log_ticks(min(spent), max(spent))},
                "yaxis": {"title": {"text": metric}},
            }
            pictures.append(
                Picture(
                    f"against {label}", f"{metric} against {label}, with the Pareto front.", data, layout, " ".join(notes), 360, wide=False
                )
            )
    return pictures


def frontier(points: Iterable[tuple[float, float]], mode: str) -> list[tuple[float, float]]:
    """The Pareto front of (cost, metric), cheapest first."""
    sign = 1.0 if mode == "max" else -1.0
    front: list[tuple[float, float]] = []
    for cost, value in sorted(points, key=lambda point: (point[0], -sign * point[1])):
        if not front or sign * value > sign * front[-1][1]:
            front.append((cost, value))
    return front


def survival(digests: Sequence[Digest]) -> Picture:
    """Number of trials that reached each rung, by stratum."""
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
    """Number of trials in training over time."""
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
    """The periods of each trial on a device."""
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
    """The steps at which the best value so far changed."""
    better: list[Step] = []
    for step in steps:
        if not better or step.best != better[-1].best:
            better.append(step)
    return better


def _cost(d: Digest, trial: Trial, what: str) -> float | None:
    return trial.value(what) if what == "latency_ms" else float(getattr(d.costs[trial.number], what))


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
