"""Computes the numbers of a search's report from its folder: winner, progress, survival, waste, plan, and what to run next."""

from __future__ import annotations

import bisect
import itertools
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist, fmean
from typing import Any

from vit_search.config.cost import Cost
from vit_search.config.metrics import METRICS
from vit_search.config.search_file import SearchSpec
from vit_search.config.space import Space
from vit_search.config.strict_json import parse
from vit_search.errors import VitSearchError
from vit_search.ledger import search_state, searches
from vit_search.ledger.events import Broke, Commanded, Ended, Event, Infeasible, Launched, Proposed, Reported
from vit_search.ledger.search_state import SearchState
from vit_search.ledger.searches import Hindsight
from vit_search.ledger.trials import Spent, Trial, pareto_front
from vit_search.planning import next_search_file
from vit_search.planning.image_counts import images_of
from vit_search.planning.next_search_file import NextFile, RankedTrial, Stuck
from vit_search.stats import wilson
from vit_search.stopping import rungs_of
from vit_search.stopping.rungs import boundaries

OUTCOMES = ("completed", "stopped", "diverged", "failed", "interrupted", "running", "held", "waiting")

SURE = 0.05
"""Significance level. Two trials count as different if chance alone would cause such a difference less often than this."""


@dataclass(frozen=True)
class Rival:
    """A full-length trial other than the winner."""

    trial: Trial
    value: float
    p: float | None
    """Probability that two equally good trials, each with its own images, differ this much; None if the metric is not a share of images."""

    @property
    def alike(self) -> bool:
        """Whether it cannot be distinguished from the winner."""
        return self.p is not None and self.p >= SURE


@dataclass(frozen=True)
class Winner:
    """The best trial, and how certain that is."""

    trial: Trial
    value: float
    interval: tuple[float, float] | None
    """95 % Wilson interval of a share of the validation images; None if the metric is not such a share, or their number is unknown."""
    images: int | None
    """Number of validation images."""
    rivals: tuple[Rival, ...]
    """The other full-length trials, best first."""
    alike: int
    """How many of them cannot be distinguished from the winner."""
    optimism: float | None
    """How much better than it is the best of so many equally good trials looks, at most."""


@dataclass(frozen=True)
class Step:
    """A full-length trial at its end."""

    trial: int
    value: float
    ended: int
    """Number of ended trials at that time, including this one."""
    hours: float
    """Hours of a running driver until then."""
    device_hours: float
    """Training hours of all trials until then, each times its GPUs or cores."""
    best: float
    """Best value of all full-length trials until then."""


@dataclass(frozen=True)
class Bar:
    """A period in which a trial had a place on a device."""

    trial: int
    outcome: str
    start: float
    """Hours of a running driver; `end`, too."""
    end: float
    lane: int


@dataclass(frozen=True)
class Survival:
    """How far the trials of one stratum came."""

    stratum: int
    label: str
    reached: dict[int, int]
    """Number of trials that reached each epoch: 0, each rung, and full length."""


@dataclass(frozen=True)
class Waste:
    """How the training time was spent, in seconds of trials."""

    by_outcome: dict[str, float]
    repeated: float
    """In trials whose parameters an earlier trial had, too."""
    repeats: int
    saved: float
    """What stopped trials would still have taken, at their own speed."""


@dataclass(frozen=True, kw_only=True)
class Digest:
    """Everything that the report of one search contains."""

    name: str
    spec: SearchSpec
    space: Space
    data_hash: str
    images: str
    """Classes, images and skipped files, in one line; empty for searches of older versions."""
    state: SearchState
    wanted: int
    """Number of trials requested, with changes while the search ran."""
    standing: tuple[Trial, ...]
    """All trials: first those of full length, then those that trained longer, each by the metric; failed ones last."""
    outcomes: dict[str, int]
    infeasible: int
    """Proposals that could not be run. They cost nothing."""
    spent: Spent
    devices: float | None
    """GPUs of each trial, or its CPU cores if it has none; None if each trial has its own number."""
    winner: Winner | None
    steps: tuple[Step, ...]
    costs: dict[int, Cost]
    front: frozenset[int]
    """Trials on the Pareto front."""
    levels: tuple[int, ...]
    survival: tuple[Survival, ...]
    hindsight: Hindsight | None
    bars: tuple[Bar, ...]
    busy: tuple[tuple[float, float], ...]
    """(hours, average number of trials in training), for equal periods of the search."""
    utilisation: float | None
    """Seconds of training and evaluation, divided by the wall time times the trials allowed at once."""
    waste: Waste
    stuck: tuple[Stuck, ...]
    next: NextFile

    @property
    def metric(self) -> str:
        """The metric by which trials are ranked."""
        return str(self.spec.metric)

    @property
    def sign(self) -> float:
        """1 if more is better, else -1."""
        return 1.0 if self.spec.mode == "max" else -1.0


def digest(folder: Path, *, driven: bool | None = None, awaited: bool = False) -> Digest:
    """Compute everything for a report. The search may be running or over.

    Args:
        driven: as for search_state.read.
        awaited: as for search_state.read.
    Raises: SearchError if the folder holds no search, or its ledger is damaged.
    """
    now = search_state.read(folder, driven=driven, awaited=awaited)
    spec, facts, events, by_number, spent = now.spec, now.facts, now.events, now.trials, now.spent
    space, trials = spec.space, list(by_number.values())
    order = standing(trials, spec.metric, spec.mode)
    costs = {trial.number: space.cost(trial.params) for trial in trials}
    devices = spec.resources.devices
    clock = _Clock(events, by_number)
    rungs = rungs_of(spec)
    observations = [RankedTrial(t.params, t.outcome == "completed") for t in order if t.over and sound(t, spec.metric)]
    capacity = _capacity(events, spec.concurrency)
    return Digest(
        name=facts.search,
        spec=spec,
        space=space,
        data_hash=facts.data_hash,
        images=facts.images,
        state=now.state,
        wanted=now.wanted,
        standing=tuple(order),
        outcomes={name: count for name in OUTCOMES if (count := sum(t.outcome == name for t in trials))},
        infeasible=sum(isinstance(event, Infeasible) for event in events),
        spent=spent,
        devices=devices,
        winner=_winner(order, spec, _val_images(folder, spec)),
        steps=_steps(events, by_number, spec, devices, clock),
        costs=costs,
        front=frozenset(_front(spec, order, costs)),
        levels=tuple(rungs),
        survival=_survival(spec, space, trials, costs, rungs),
        hindsight=None if now.state.driven else searches.read_hindsight(folder),
        bars=clock.bars(),
        busy=clock.busy(spent.wall_seconds),
        utilisation=min(1.0, spent.trial_seconds / capacity) if capacity else None,
        waste=_waste(trials, spent),
        stuck=tuple(next_search_file.stuck(space, observations)),
        next=next_search_file.next_file(spec, facts.search, observations),
    )


def sound(trial: Trial, metric: str) -> bool:
    """Whether the trial has a metric, and did not diverge or fail."""
    return trial.value(metric) is not None and trial.outcome not in ("diverged", "failed")


def standing(trials: Iterable[Trial], metric: str, mode: str) -> list[Trial]:
    """Trials from best to worst. Stopped trials are ordered by their length first, then by the metric.

    Rungs let better trials continue, so the trial that trained longer counts as better. The leaderboard compares only the metric.
    """
    sign = -1.0 if mode == "max" else 1.0

    def key(trial: Trial) -> tuple[bool, bool, int, float, int]:
        value = trial.value(metric)
        lost = not sound(trial, metric)
        return lost, trial.outcome != "completed", -len(trial.results), sign * (value or 0.0), trial.number

    return sorted(trials, key=key)


def apart(first: float, second: float, images: int) -> float:
    """Probability that two equally good models differ this much, each on its own `images` images (two-proportion z-test).

    Two trials see the same images, so chance makes them differ less: the test is conservative.
    """
    pooled = (first + second) / 2
    deviation = math.sqrt(2 * pooled * (1 - pooled) / images)
    return 1.0 if first == second else 2 * (1 - NormalDist().cdf(abs(first - second) / deviation))


def optimism(values: Sequence[float], images: int) -> float:
    """Expected amount by which the best of equally good models looks better than it is, from the choice of validation images alone.

    Each model counts as equally good as the mean, with independent binomial noise. The expected maximum of k such draws is, by Blom,
    Phi^-1((k - 0.375) / (k + 0.25)) standard deviations. Trials share their images, so this is an upper estimate.

    Source: G. Blom 1958, Statistical Estimates and Transformed Beta-Variables.
    """
    count = len(values)
    if count < 2:
        return 0.0
    share = (fmean(values) * images + 2) / (images + 4)  # Agresti and Coull's estimate, because 1.0 has noise, too
    return NormalDist().inv_cdf((count - 0.375) / (count + 0.25)) * math.sqrt(share * (1 - share) / images)


def _winner(order: Sequence[Trial], spec: SearchSpec, images: int | None) -> Winner | None:
    first = next(iter(order), None)
    value = None if first is None or not sound(first, spec.metric) else first.value(spec.metric)
    if first is None or value is None:
        return None
    tested_images = images if METRICS[spec.metric].of_images else None
    others = [(t, v) for t in order[1:] if t.outcome == "completed" and (v := t.value(spec.metric)) is not None]
    rivals = tuple(Rival(t, v, apart(value, v, tested_images) if tested_images else None) for t, v in others)
    near = [value, *(rival.value for rival in rivals if rival.alike)]
    return Winner(
        trial=first,
        value=value,
        interval=wilson(value * tested_images, tested_images) if tested_images else None,
        images=images,
        rivals=rivals,
        alike=len(near) - 1,
        optimism=optimism(near, tested_images) if tested_images else None,
    )


def _val_images(folder: Path, spec: SearchSpec) -> int | None:
    """Number of validation images, as counted when the search began, or from the data set's name; None if neither is known."""
    split = "val" if spec.train_on == "train" else "holdout"
    try:
        count = parse((folder / "plan.json").read_text(encoding="utf-8"))["images"][split]
        if type(count) is int and 0 < count < 10**9:
            return count
    except (OSError, ValueError, TypeError, KeyError):
        pass
    try:
        return int(getattr(images_of(spec.data_config), split))
    except VitSearchError:
        return None


def _capacity(events: Iterable[Event], concurrency: int) -> float:
    """Seconds of a running driver, each times the number of trials allowed at once."""
    total, last = 0.0, None
    for event in events:
        if last is not None and not isinstance(event, Launched):
            total += max(0.0, event.at - last) * concurrency
        last = event.at
        if isinstance(event, Commanded) and event.name == "set":
            concurrency = int(event.arguments.get("concurrency") or concurrency)
    return total


class _Clock:
    """Times of events in hours of a running driver: the time between a crash and a resume is left out."""

    def __init__(self, events: Iterable[Event], trials: Mapping[int, Trial]) -> None:
        self.ended: dict[int, float] = {}
        """Hours at the last end of each trial."""
        self._trials = trials
        self._stretches: list[tuple[float, float, int]] = []
        self._epochs: list[tuple[float, float]] = []
        """For each epoch: (hours at its end, hours that it took)."""
        wall, last = 0.0, None
        opened: dict[int, tuple[float, float]] = {}
        """Trials that have a place: (since when, last event)."""
        for event in events:
            if last is not None and not isinstance(event, Launched):
                wall += max(0.0, event.at - last) / 3600
            last = event.at
            if isinstance(event, Launched):
                for number in list(opened):
                    self._close(number, *opened.pop(number))
            elif isinstance(event, Proposed):
                opened[event.trial] = wall, wall
            elif isinstance(event, Reported):
                took = event.result.seconds / 3600
                self._epochs.append((wall, took))
                opened[event.trial] = opened.get(event.trial, (max(0.0, wall - took), wall))[0], wall
            elif isinstance(event, Broke) and event.trial in opened:
                self._close(event.trial, opened.pop(event.trial)[0], wall)
            elif isinstance(event, Ended):
                self.ended[event.trial] = wall
                if event.trial in opened:
                    self._close(event.trial, opened.pop(event.trial)[0], wall)
        for number, (start, _) in opened.items():
            self._close(number, start, wall)

    def _close(self, number: int, start: float, end: float) -> None:
        self._stretches.append((start, end, number))

    def bars(self) -> tuple[Bar, ...]:
        """Put each period into the lowest free lane."""
        free: list[float] = []
        placed = []
        for start, end, number in sorted(self._stretches):
            lane = next((i for i, until in enumerate(free) if until <= start), len(free))
            free[lane:] = [end, *free[lane + 1 :]]
            placed.append(Bar(number, self._trials[number].outcome, start, end, lane))
        return tuple(placed)

    def busy(self, wall_seconds: float, stretches: int = 100) -> tuple[tuple[float, float], ...]:
        """Average number of trials in training, for equal periods of the search."""
        hours = wall_seconds / 3600
        if not hours or not self._epochs:
            return ()
        width, trained = hours / stretches, [0.0] * stretches
        for end, took in self._epochs:
            first, last = max(0.0, end - took) / width, min(end / width, stretches)
            for i in range(int(first), min(stretches, math.ceil(last))):
                trained[i] += max(0.0, min(i + 1, last) - max(i, first))
        return tuple(((i + 0.5) * width, busy) for i, busy in enumerate(trained))


def _steps(
    events: Iterable[Event], trials: Mapping[int, Trial], spec: SearchSpec, devices: float | None, clock: _Clock
) -> tuple[Step, ...]:
    steps: list[Step] = []
    ended: set[int] = set()
    trained, better = 0.0, max if spec.mode == "max" else min
    for event in events:
        if isinstance(event, Reported):
            trained += event.result.seconds * (event.devices if devices is None else devices)
        elif isinstance(event, Ended) and event.outcome != "interrupted":
            ended.add(event.trial)
            value = trials[event.trial].value(spec.metric)
            if event.outcome == "completed" and value is not None:
                best = better(value, steps[-1].best) if steps else value
                hours = clock.ended[event.trial]
                steps.append(Step(event.trial, value, len(ended), hours, trained / 3600, best))
    return tuple(steps)


def _front(spec: SearchSpec, order: Iterable[Trial], costs: Mapping[int, Cost]) -> set[int]:
    """Full-length trials that no other one beats in all objectives of the search; empty if it has only one metric."""
    if not spec.objectives:
        return set()
    points = {}
    for trial in order:
        values = [objective(trial, name, costs) for name in (spec.metric, *(goal.metric for goal in spec.objectives))]
        present = [value for value in values if value is not None]
        if trial.outcome == "completed" and len(present) == len(values):
            points[trial.number] = present
    return pareto_front(points, [spec.mode, *(goal.mode for goal in spec.objectives)])


def objective(trial: Trial, name: str, costs: Mapping[int, Cost]) -> float | None:
    """A trial's metric at its last epoch, or the cost of its model."""
    field = searches.COST_FIELDS.get(name)
    return float(getattr(costs[trial.number], field)) if field else trial.value(name)


def _survival(
    spec: SearchSpec, space: Space, trials: Sequence[Trial], costs: Mapping[int, Cost], rungs: Sequence[int]
) -> tuple[Survival, ...]:
    parts = boundaries(space, spec.stopping.strata)
    strata: dict[int, list[Trial]] = {i: [] for i in range(len(parts) + 1)}
    for trial in trials:
        strata[bisect.bisect_right(parts, costs[trial.number].train_flops)].append(trial)
    labels = ["all"]
    if parts:
        labels = [f"up to {parts[0]:.3g} FLOPs"] + [f"{a:.3g} to {b:.3g}" for a, b in itertools.pairwise(parts)]
        labels += [f"from {parts[-1]:.3g}"]
    looks = [0, *rungs, spec.epochs]
    return tuple(
        Survival(i, labels[i], {epoch: sum(len(t.results) >= epoch for t in members) for epoch in looks}) for i, members in strata.items()
    )


def _waste(trials: Sequence[Trial], spent: Spent) -> Waste:
    by_outcome = dict.fromkeys(OUTCOMES, 0.0)
    times_tried: Counter[tuple[tuple[str, Any], ...]] = Counter()
    repeated, repeats = 0.0, 0
    for trial in trials:
        seconds = sum(result.seconds for result in trial.results)
        by_outcome[trial.outcome] += seconds
        key = tuple(sorted(trial.params.items()))
        if times_tried[key]:
            repeated, repeats = repeated + seconds, repeats + 1
        times_tried[key] += 1
    return Waste({name: seconds for name, seconds in by_outcome.items() if seconds}, repeated, repeats, spent.saved_seconds)
