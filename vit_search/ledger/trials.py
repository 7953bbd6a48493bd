"""The trials of a search as its events make them: what each did, what all have cost, and their ranking."""

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
    """How it ended; `running` while the ledger has no end of it. search_state.py tells if it is paused or waits for resources."""
    reason: str = ""
    breakdowns: list[str] = field(default_factory=list)
    """The reason of each breakdown of its process."""
    began: float = 0.0
    ended: float | None = None
    weighed_seconds: float = 0.0
    """Seconds of training and evaluation, each epoch's times the devices that it held, if its events say so."""

    def device_seconds(self, devices: float | None) -> float:
        """Of training and evaluation, times the devices: as many as every trial holds, or None where each has its own."""
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
    """What a search has cost so far, folded from its events."""

    epochs: int = 0
    """Trained, of all trials."""
    trial_seconds: float = 0.0
    """Of training and evaluation, all trials together."""
    stopped_seconds: float = 0.0
    """The part of it that went into trials stopped early."""
    saved_seconds: float = 0.0
    """What those of them that a stopping rule ended would have taken on top, at their own pace."""
    saved_epochs: int = 0
    """Epochs that those trials did not train. What a person or a limit cut short saves nothing."""
    wall_seconds: float = 0.0
    """While a driver was at work; the time between a death and a resume does not count."""
    weighed_seconds: float = 0.0
    """As a trial's, of all trials together."""
    _last: float | None = None

    @property
    def saved_share(self) -> float:
        """Of all epochs that would have been trained without stopping, those saved; in [0, 1]."""
        whole = self.epochs + self.saved_epochs
        return self.saved_epochs / whole if whole else 0.0

    def device_seconds(self, devices: float | None) -> float:
        """As a trial's, of all trials together."""
        return self.weighed_seconds if devices is None else devices * self.trial_seconds

    def apply(self, event: Event, trials: Mapping[int, Trial], full: int) -> None:
        """Add one more event, after it was applied to `trials`; `full` is the number of epochs of a full training."""
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
            if not event.reason:  # by a rule; a person's word and a limit come with a reason
                self.saved_seconds += seconds / max(len(results), 1) * (full - len(results))
                self.saved_epochs += full - len(results)


@dataclass
class Progress:
    """What the events of a ledger come to: its trials by their numbers, and what they cost."""

    epochs: int
    """Of a full training, to count what stopping saved."""
    trials: dict[int, Trial] = field(default_factory=dict)
    unfinished: dict[int, None] = field(default_factory=dict)
    """Numbers of those that are not over, ascending."""
    spent: Spent = field(default_factory=Spent)

    @staticmethod
    def of(events: Iterable[Event], epochs: int) -> Progress:
        """Of all of them."""
        progress = Progress(epochs)
        for event in events:
            progress.apply(event)
        return progress

    def apply(self, event: Event) -> None:
        """Apply one more event."""
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
    """The leaderboard: trials of full length first, then the others, each by the metric at the last epoch, then by number."""
    sign = -1.0 if mode == "max" else 1.0

    def key(trial: Trial) -> tuple[bool, float, int]:
        value = trial.value(metric)
        lost = value is None or trial.outcome in ("diverged", "failed")
        return trial.outcome != "completed", math.inf if lost else sign * (value or 0.0), trial.number

    return sorted(trials, key=key)


def numbers_to_keep(trials: Iterable[Trial], metric: str, mode: str, count: int) -> set[int]:
    """Of trials that are over, those whose checkpoints are worth their disk: the first `count` of the leaderboard."""
    sound = [trial for trial in trials if trial.outcome not in ("diverged", "failed")]
    return {trial.number for trial in ranked(sound, metric, mode)[:count]}


def pareto_front(points: Mapping[int, Sequence[float]], modes: Sequence[str]) -> set[int]:
    """The Pareto front: those points that no other beats in one respect without losing in another."""
    signs = [1.0 if mode == "max" else -1.0 for mode in modes]
    scores = {number: [sign * value for sign, value in zip(signs, point, strict=True)] for number, point in points.items()}
    unbeaten: dict[int, list[float]] = {}
    for number, score in sorted(scores.items(), key=lambda item: item[1], reverse=True):  # whoever beats a point comes before it
        if not any(other != score and all(a >= b for a, b in zip(other, score, strict=True)) for other in unbeaten.values()):
            unbeaten[number] = score
    return set(unbeaten)


def best_trial(trials: Iterable[Trial], metric: str, mode: str) -> Trial | None:
    """The first of the leaderboard, where it has a value at all and did not fail."""
    first = next(iter(ranked(trials, metric, mode)), None)
    return first if first and first.value(metric) is not None and first.outcome not in ("diverged", "failed") else None
