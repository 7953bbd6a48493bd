"""Writes the search file to run after a search: narrower ranges around its good trials, wider ones if these are stuck at a border."""

from __future__ import annotations

import math
import random
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import yaml

from vit_search.config import search_file
from vit_search.config.distributions import Choice, FloatRange, IntRange, Value
from vit_search.config.knobs import within
from vit_search.config.model_config import ModelConfig
from vit_search.config.search_file import SearchSpec
from vit_search.config.space import Space
from vit_search.config.space_checks import check_point
from vit_search.config.training_config import TrainingConfig
from vit_search.errors import SpecError
from vit_search.text import counted

GOOD_SHARE = 0.2
"""Share of the trials that count as good. New ranges and the importance of parameters come from them."""

FEWEST = 5
"""Minimum number of good trials, and of full-length trials. With fewer, nothing is changed."""

OUTER = 0.1
"""Share of a range, on its own scale, that counts as its border."""

STUCK_BELOW = 0.01
"""A parameter is stuck if chance would put so many good trials at its border less often than this, and expects at most half as many."""

MARGIN = 0.1
"""Share of a range that is kept on each side of the good trials."""

NARROWEST = 0.25
"""At least this share of a range is kept."""

FACTOR = 3.0
"""Factor by which a logarithmic range is widened. Other ranges are widened by half of their width."""

UNLUCKY_BELOW = 0.05
"""A choice is dropped if no good trial has it, this is less likely than this by chance, and it was tried at least `FEWEST` times."""

_BOUNDS = {f.name: f.metadata.get("bounds", {}) for config in (ModelConfig, TrainingConfig) for f in fields(config)}

Side = Literal["low", "high"]


@dataclass(frozen=True)
class RankedTrial:
    """What the next file needs to know about a trial."""

    params: Mapping[str, Value]
    completed: bool
    """Whether it reached full length."""


@dataclass(frozen=True)
class Stuck:
    """A parameter whose good trials are concentrated at an end of its range."""

    parameter: str
    side: Side
    end: float
    """The value at this end."""
    crowd: int
    """Number of good trials in the outer tenth."""
    good: int
    """Number of good trials that have the parameter."""
    expected: float
    """How many of them would be there by chance."""
    legal_end: bool
    """Whether values beyond the end are invalid, so that the range cannot be widened."""


@dataclass(frozen=True)
class Change:
    """A changed line of the next file."""

    parameter: str
    before: str
    after: str
    why: str


@dataclass(frozen=True)
class NextFile:
    """A search file that `search_file.parse` accepts, and its changes."""

    text: str
    changes: tuple[Change, ...]
    good: int
    """Number of trials from which the changes were made."""
    of: int
    note: str
    """Why nothing was changed; empty if something was."""


def good_ones(standing: Sequence[RankedTrial]) -> Sequence[RankedTrial]:
    """The best fifth of the trials, at least `FEWEST`; none if too few have reached full length."""
    if sum(trial.completed for trial in standing) < FEWEST:
        return ()
    return standing[: max(FEWEST, math.ceil(GOOD_SHARE * len(standing)))]


def position(parameter: IntRange | FloatRange, value: float) -> float:
    """Position of a value in its range, on the range's own scale: 0 at the low end, 1 at the high end."""
    low, high = (_scaled(parameter, end) for end in parameter.range)
    return (_scaled(parameter, value) - low) / (high - low)


def stuck(space: Space, standing: Sequence[RankedTrial]) -> list[Stuck]:
    """Parameters with more good trials in the outer tenth of their range than by chance (binomial test).

    Chance is what valid random proposals (from a fixed seed) do, so conditions and constraints are included.

    Args:
        standing: trials, best first.
    """
    good = good_ones(standing)
    if not good:
        return []
    rng = random.Random(0)  # noqa: S311 -- a sample of the space, not a secret
    drawn = [params for params in (space.draw(rng) for _ in range(1000)) if space.problem(params) is None]
    crowded = []
    for name, parameter in space.searched.items():
        if isinstance(parameter, Choice):
            continue
        of_good = [position(parameter, trial.params[name]) for trial in good if name in trial.params]  # type: ignore[arg-type]
        by_chance = [position(parameter, params[name]) for params in drawn if name in params]  # type: ignore[arg-type]
        for end, side in enumerate(_SIDES):
            crowd, share = (sum(abs(at - end) <= OUTER + 1e-9 for at in positions) for positions in (of_good, by_chance))
            chance = (share + 1) / (len(by_chance) + 2)
            if len(of_good) >= FEWEST and crowd >= 2 * chance * len(of_good) and _at_least(crowd, len(of_good), chance) < STUCK_BELOW:
                legal = _extended(name, parameter, side) is None
                limit = float(parameter.range[end])
                crowded.append(Stuck(name, side, limit, crowd, len(of_good), chance * len(of_good), legal))
    return crowded


def next_file(spec: SearchSpec, search: str, standing: Sequence[RankedTrial]) -> NextFile:
    """Make the search file to run next.

    It has the name of the search, learns from it, and starts with its best points. Ranges are narrowed around the good trials, or widened
    if these are stuck at a border. Choices that were tried often without success are dropped. Each changed line says why. If the changes
    together make no valid file, the widened ranges are left out, then all changes.

    Args:
        spec: of the search that was run.
        search: name of its folder.
        standing: its trials that are over and have a metric, best first.
    """
    good = good_ones(standing)
    edits = _edits(spec.space, standing, good) if good else {}
    completed = [trial.params for trial in standing if trial.completed]
    for kept in (edits, {name: edit for name, edit in edits.items() if not edit.widens}, {}):
        text = _written(spec, search, kept, completed, len(good), len(standing))
        try:
            sound = search_file.parse(text).space.feasible_share(200) > 0
        except SpecError:
            sound = False
        if sound:
            break
    else:
        text = _written(spec, search, {}, [], 0, 0)
    reached = len(completed)
    notes = [f"only {reached} {'trial has' if reached == 1 else 'trials have'} reached full length, and {FEWEST} are needed for new ranges"]
    notes += ["the good trials cover the whole of each range and lie at no border"]
    changes = tuple(Change(name, edit.before, edit.after, edit.why) for name, edit in kept.items())
    return NextFile(text, changes, len(good), len(standing), "" if changes else notes[bool(good)])


@dataclass(frozen=True)
class _Edit:
    """The new distribution of a parameter."""

    values: list[Any]
    """The choices, or low and high."""
    before: str
    after: str
    why: str
    widens: bool = False


def _edits(space: Space, standing: Sequence[RankedTrial], good: Sequence[RankedTrial]) -> dict[str, _Edit]:
    conditions = " ".join(parameter.when or "" for parameter in space.searched.values())
    ends = {(one.parameter, one.side): one for one in stuck(space, standing) if not one.legal_end}
    edits: dict[str, _Edit] = {}
    for name, parameter in space.searched.items():
        values = [trial.params[name] for trial in good if name in trial.params]
        if len(values) < FEWEST:
            continue
        if not isinstance(parameter, Choice):
            edit = _new_range(name, parameter, [float(v) for v in values], {s: ends[name, s] for s in _SIDES if (name, s) in ends})  # type: ignore[arg-type]
        elif re.search(rf"\b{name}\b", conditions):
            edit = None  # conditions depend on its values
        else:
            edit = _fewer(parameter, values, [trial.params[name] for trial in standing if name in trial.params])
        if edit is not None:
            edits[name] = edit
    return edits


_SIDES: tuple[Side, Side] = ("low", "high")


def _fewer(parameter: Choice[Any], good: Sequence[Any], tried: Sequence[Any]) -> _Edit | None:
    """The choices without those that were tried often without success; None if nothing changes. At least two remain."""
    among, times = Counter(good), Counter(tried)
    share = len(good) / len(tried)
    out = [c for c in parameter.choice if not among[c] and times[c] >= FEWEST and (1 - share) ** times[c] < UNLUCKY_BELOW]
    left = [c for c in parameter.choice if c not in out]
    if not out or len(left) < 2:
        return None
    dropped = ", ".join(f"{flow(c)} ({times[c]} tried)" for c in out)
    return _Edit(left, flow(parameter.choice), flow(left), f"none of the best {len(good)} has {dropped}")


def _new_range(name: str, parameter: IntRange | FloatRange, good: Sequence[float], ends: Mapping[Side, Stuck]) -> _Edit | None:
    """A range around the good values, widened at ends where they are stuck. None if it hardly changes."""
    before = parameter.range
    low, high = (_scaled(parameter, end) for end in before)
    at = [_scaled(parameter, value) for value in good]
    new = [max(low, min(at) - MARGIN * (high - low)), min(high, max(at) + MARGIN * (high - low))]
    lacks = NARROWEST * (high - low) - (new[1] - new[0])
    if lacks > 0:
        new = [new[0] - lacks / 2, new[1] + lacks / 2]
        over = max(0.0, low - new[0]) - max(0.0, new[1] - high)
        new = [new[0] + over, new[1] + over]
    after = [_snapped(parameter, new[0], "low"), _snapped(parameter, new[1], "high")]
    for side in ends:
        extended = _extended(name, parameter, side)
        assert extended is not None, "a legal end is not widened"
        after[_SIDES.index(side)] = extended
    if after[1] <= after[0] or (not ends and position(parameter, after[1]) - position(parameter, after[0]) > 1 - MARGIN):
        return None
    why = [f"{one.crowd} of the best {one.good} lie at the {'lower' if one.side == 'low' else 'upper'} end" for one in ends.values()]
    if after[0] > before[0] or after[1] < before[1]:
        why.append(f"the best {len(good)} lie between {_short(min(good))} and {_short(max(good))}")
    return _Edit(after, flow(list(before)), flow(after), "; ".join(why), bool(ends))


def _extended(name: str, parameter: IntRange | FloatRange, side: Side) -> float | None:
    """An end of a range, moved outward as far as the parameter's bounds allow; None if it cannot move."""
    end, width, bounds = parameter.range[_SIDES.index(side)], parameter.range[1] - parameter.range[0], _BOUNDS[name]
    sign = -1 if side == "low" else 1
    for part in (1.0, 0.5, 0.25, 0.1):
        if parameter.log:
            reached: float = end * FACTOR ** (sign * part)
        else:
            reached = end + sign * part * width / 2
        legal = bounds.get("ge", -math.inf) if side == "low" else bounds.get("le", math.inf)
        reached = max(reached, legal) if side == "low" else min(reached, legal)
        if isinstance(parameter, IntRange) or parameter.step is not None:
            step = parameter.step or 1
            steps = math.floor(abs(reached - end) / step + 1e-9)
            moved = end + sign * steps * step
            reached = int(moved) if isinstance(parameter, IntRange) else round(moved, 12)
        else:
            reached = reached if reached == legal else float(f"{reached:.2g}")
        if reached != end and (reached - end) * sign > 0 and within(reached, bounds):
            return reached
    return None


def _snapped(parameter: IntRange | FloatRange, scaled: float, side: Side) -> float:
    """The nearest round value that lies further outward, within the range."""
    low, high = parameter.range
    value = math.exp(scaled) if parameter.log else scaled
    outward = math.floor if side == "low" else math.ceil
    shift = -1e-9 if side == "high" else 1e-9
    if isinstance(parameter, IntRange):
        return min(high, max(low, low + parameter.step * outward((value - low) / parameter.step + shift)))
    if parameter.step is not None:
        return min(high, max(low, round(low + parameter.step * outward((value - low) / parameter.step + shift), 12)))
    size = abs(value) if parameter.log else high - low
    unit = 10.0 ** (math.floor(math.log10(size)) - 1)  # two digits of the value, or of the range's width
    return min(high, max(low, float(f"{unit * outward(value / unit + shift):.6g}")))


def _scaled(parameter: IntRange | FloatRange, value: float) -> float:
    return math.log(value) if parameter.log else float(value)


def _at_least(hits: int, count: int, chance: float) -> float:
    """The probability of at least so many hits."""
    return sum(math.comb(count, k) * chance**k * (1 - chance) ** (count - k) for k in range(hits, count + 1))


def _written(
    spec: SearchSpec, search: str, edits: Mapping[str, _Edit], completed: Sequence[Mapping[str, Value]], good: int, of: int
) -> str:
    """The text of the file, one key per line."""
    values: dict[str, Any] = spec.model_dump(mode="json", by_alias=True, exclude_unset=True)
    values["seed"] = (spec.seed + 1) % 2**31
    values["learn_from"] = list(dict.fromkeys([*values.get("learn_from", []), search]))
    values.pop("start_with", None)
    notes = {f"{part}.{name}": edit for part in ("model", "training") for name, edit in edits.items() if name in (values.get(part) or {})}
    for path, edit in notes.items():
        part, name = path.split(".")
        form = next(form for form in ("choice", "int", "float") if form in values[part][name])
        values[part][name][form] = edit.values
    why = {path: f"was {edit.before}: {edit.why}" for path, edit in notes.items()}
    why |= {"seed": f"not {search}'s: other draws", "learn_from": f"what {search} has seen"}
    try:
        space = search_file.parse(_lines(values, {})).space
    except SpecError:
        space = None
    best = [dict(params) for params in completed if space is not None and _lies_in(space, params)]
    best = [params for i, params in enumerate(best) if params not in best[:i]][:3]
    if best:
        values["start_with"] = best
        why["start_with"] = f"the best of {search}"
    drawn = f"drawn from the best {good} of {counted(of, 'trial')}" if edits else "the same ranges"
    return f"# After {search}: {drawn}; a line that differs says why.\n" + _lines(values, why)


def _lies_in(space: Space, params: Mapping[str, Value]) -> bool:
    try:
        check_point(space, params, "start_with")
    except SpecError:
        return False
    return True


def _lines(values: Mapping[str, Any], why: Mapping[str, str]) -> str:
    lines = []

    def say(text: str, path: str) -> None:
        lines.append(text + (f" # {why[path]}" if path in why else ""))

    for key, value in values.items():
        if key in ("model", "training") and value:
            say(f"{key}:", key)
            for name, one in value.items():
                say(f"  {name}: {flow(one)}", f"{key}.{name}")
        elif key in ("start_with", "constraints", "objectives") and value:
            say(f"{key}:", key)
            lines.extend(f"  - {flow(one)}" for one in value)
        else:
            say(f"{key}: {flow(value)}", key)
    return "\n".join(lines) + "\n"


def flow(value: Any) -> str:
    """A value on one line of YAML."""
    text = yaml.safe_dump(value, default_flow_style=True, width=10**9, sort_keys=False, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")


def _short(value: float) -> str:
    return f"{value:.3g}"
