"""The trials of a search, rebuilt from its events: what each did, what all of them cost, and how they rank."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from vit_search.config.distributions import Value
from vit_search.config.trial import EpochResult
from vit_search.ledger.events import Broke, Ended, Event, Launched, Outcome, Proposed, Reported


@dataclass
class Trial:
    """One trial: its parameters, its epochs, and how it ended."""

    number: int
    params: dict[str, Value]
    results: list[EpochResult] = field(default_factory=list)
    outcome: Outcome | Literal["running", "held", "waiting"] = "running"
    """How it ended. `running` until the ledger has its end; search_state.py finds out whether it is held or waits for resources."""
    reason: str = ""
    breakdowns: list[str] = field(default_factory=list)
    """The reason of each breakdown of its process."""
    began: float = 0.0
    ended: float | None = None
    weighed_seconds: float = 0.0
    """Seconds of training and evaluation, each epoch's times its devices (0 if its event names none)."""

    def device_seconds(self, devices: float | None) -> float:
        """Seconds of training and evaluation, times `devices`: those of every trial, or None if each trial has its own."""
        return self.weighed_seconds if devices is None else devices * sum(result.seconds for result in self.results)

    @property
    def over(self) -> bool:
        """Whether it has ended for good: no resume continues it."""
        return self.outcome not in ("running", "held", "waiting", "interrupted")

    def best_value(self, metric: str, mode: str) -> float | None:
        """The metric at its best epoch; None if it never was a finite number."""
        values = [value for result in self.results if (value := result.value(metric)) is not None and math.isfinite(value)]
        return (max(values) if mode == "max" else min(values)) if values else None

    def value(self, metric: str) -> float | None:
        """The metric at the last epoch; None before the first epoch, or if it is not a finite number."""
        value = self.results[-1].value(metric) if self.results else None
        return None if value is None or not math.isfinite(value) else float(value)


@dataclass
class Spent:
    """What a search has cost so far."""

    epochs: int = 0
    """Trained epochs of all trials."""
    trial_seconds: float = 0.0
    """Seconds of training and evaluation, of all trials."""
    stopped_seconds: float = 0.0
    """The part of it that went into trials stopped early."""
    saved_seconds: float = 0.0
    """Seconds that the trials stopped by a rule would have needed until full length, at their own speed."""
    saved_epochs: int = 0
    """Epochs that those trials did not train. A trial that a person or a limit stopped saves nothing."""
    wall_seconds: float = 0.0
    """Seconds in which a driver ran. The time between a crash and a resume does not count."""
    weighed_seconds: float = 0.0
    """The same as Trial.weighed_seconds, of all trials."""
    _last: float | None = None

    @property
    def saved_share(self) -> float:
        """Saved epochs, as a share of all epochs that would have been trained without stopping; from 0 to 1."""
        whole = self.epochs + self.saved_epochs
        return self.saved_epochs / whole if whole else 0.0

    def device_seconds(self, devices: float | None) -> float:
        """The same as Trial.device_seconds, of all trials."""
        return self.weighed_seconds if devices is None else devices * self.trial_seconds

    def apply(self, event: Event, trials: Mapping[int, Trial], full: int) -> None:
        """Add one event, after it was applied to `trials`. `full`: epochs of a full training."""
        if self._last is not None and not isinstance(event, Launched):
            self.wall_seconds += max(0.0, event.at - self._last)  # a clock may be set back
        self._last = event.at
        if isinstance(event, Reported):
            self.epochs += 1
            self.trial_seconds += event.result.seconds
            self.weighed_seconds += event.result.seconds * event.devices
        elif isinstance(event, Ended) and event.outcome == "stopped":
            results = trials[event.trial].results
            seconds = sum(result.seconds for result in results)
            self.stopped_seconds += seconds
            if not event.reason:  # stopped by a rule: persons and limits give a reason
                self.saved_seconds += seconds / max(len(results), 1) * (full - len(results))
                self.saved_epochs += full - len(results)


@dataclass
class Progress:
    """The trials of a search by number, and their cost. It follows from the events of the ledger."""

    epochs: int
    """Epochs of a full training, to count what stopping saved."""
    trials: dict[int, Trial] = field(default_factory=dict)
    unfinished: dict[int, None] = field(default_factory=dict)
    """Numbers of the trials that are not over, ascending."""
    spent: Spent = field(default_factory=Spent)

    @staticmethod
    def of(events: Iterable[Event], epochs: int) -> Progress:
        """The progress after all `events`."""
        progress = Progress(epochs)
        for event in events:
            progress.apply(event)
        return progress

    def apply(self, event: Event) -> None:
        """Apply one event."""
        if isinstance(event, Proposed):
            self.trials[event.trial] = Trial(event.trial, event.params, began=event.at)
            self.unfinished[event.trial] = None
        elif isinstance(event, Reported):
            trial = self.trials[event.trial]
            trial.results.append(event.result)
            trial.weighed_seconds += event.result.seconds * event.devices
            trial.outcome = "running"
        elif isinstance(event, Broke):
            self.trials[event.trial].breakdowns.append(event.reason)
        elif isinstance(event, Ended):
            trial = self.trials[event.trial]
            trial.outcome, trial.reason, trial.ended = event.outcome, event.reason, event.at
            if trial.over:
                self.unfinished.pop(event.trial, None)
        self.spent.apply(event, self.trials, self.epochs)


def ranked(trials: Iterable[Trial], metric: str, mode: str) -> list[Trial]:
    """The leaderboard: trials of full length first, then the others, both sorted by the metric at the last epoch, then by number."""
    sign = -1.0 if mode == "max" else 1.0

    def key(trial: Trial) -> tuple[bool, float, int]:
        value = trial.value(metric)
        lost = value is None or trial.outcome in ("diverged", "failed")
        return trial.outcome != "completed", math.inf if lost else sign * (value or 0.0), trial.number

    return sorted(trials, key=key)


def numbers_to_keep(trials: Iterable[Trial], metric: str, mode: str, count: int) -> set[int]:
    """The first `count` trials of the leaderboard, whose checkpoints are kept. Diverged and failed trials are left out."""
    sound = [trial for trial in trials if trial.outcome not in ("diverged", "failed")]
    return {trial.number for trial in ranked(sound, metric, mode)[:count]}


def pareto_front(points: Mapping[int, Sequence[float]], modes: Sequence[str]) -> set[int]:
    """The Pareto front: the points for which no other point is at least as good in every respect and better in one."""
    signs = [1.0 if mode == "max" else -1.0 for mode in modes]
    scores = {number: [sign * value for sign, value in zip(signs, point, strict=True)] for number, point in points.items()}
    unbeaten: dict[int, list[float]] = {}
    for number, score in sorted(scores.items(), key=lambda item: item[1], reverse=True):  # a point that beats another comes before it
        if not any(other != score and all(a >= b for a, b in zip(other, score, strict=True)) for other in unbeaten.values()):
            unbeaten[number] = score
    return set(unbeaten)


def best_trial(trials: Iterable[Trial], metric: str, mode: str) -> Trial | None:
    """The first trial of the leaderboard; None if it has no value or has failed."""
    first = next(iter(ranked(trials, metric, mode)), None)
    return first if first and first.value(metric) is not None and first.outcome not in ("diverged", "failed") else None
