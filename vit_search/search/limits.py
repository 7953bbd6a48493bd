"""When a search is done before all of its trials are: time spent, a target reached, no improvement."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from vit_search.spec.numbers import counted
from vit_search.tracking.ledger import Ended, Event, Spent, Trial


class Asked(Protocol):
    """The limits that somebody set: a search file's section, or the settings as they stand."""

    @property
    def hours(self) -> float | None: ...  # noqa: D102
    @property
    def device_hours(self) -> float | None: ...  # noqa: D102
    @property
    def target(self) -> float | None: ...  # noqa: D102
    @property
    def patience(self) -> int | None: ...  # noqa: D102


class Limits:
    """What the limits of a search come to, event by event; a ledger's events fed again rebuild it.

    Args:
        asked: the limits.
        metric: what trials are ranked by. mode: "min" or "max".
        devices: GPUs, or CPU cores where it uses none, that every trial holds; None where each has its own.
    """

    def __init__(self, asked: Asked, *, metric: str, mode: str, devices: float | None) -> None:
        self._asked = asked
        self._metric, self._sign, self._devices = metric, 1.0 if mode == "max" else -1.0, devices
        self._best: float | None = None
        self._since_best = 0
        self._completed: dict[int, float] = {}
        """Scores of full-length trials, the first to end first."""

    def change(self, asked: Asked) -> None:
        """Other limits from here on, for what has happened, too."""
        self._asked = asked

    def take(self, event: Event, trials: Mapping[int, Trial]) -> None:
        """One more event, after `trials` has taken it."""
        if not isinstance(event, Ended) or event.outcome == "interrupted":
            return
        trial = trials[event.trial]
        value = trial.value(self._metric)
        lost = value is None or trial.outcome in ("diverged", "failed")
        score = None if lost else self._sign * (value or 0.0)
        if score is not None and (self._best is None or score > self._best):
            self._best, self._since_best = score, 0
        else:
            self._since_best += 1
        if trial.outcome == "completed" and score is not None:
            self._completed[trial.number] = score

    def reached(self, spent: Spent) -> str | None:
        """The limit that ends the search, in words; None while none does."""
        asked = self._asked
        if asked.target is not None:
            there = next((number for number, score in self._completed.items() if score >= self._sign * asked.target), None)
            if there is not None:
                return f"limits.target: trial {there} reached {asked.target:g}"
        if asked.patience is not None and self._since_best >= asked.patience:
            return f"limits.patience: no improvement in {counted(self._since_best, 'trial')}"
        if asked.hours is not None and spent.wall_seconds >= 3600 * asked.hours:
            return f"limits.hours: {asked.hours:g} h are over"
        if asked.device_hours is not None and spent.device_seconds(self._devices) >= 3600 * asked.device_hours:
            return f"limits.device_hours: {asked.device_hours:g} h are spent"
        return None


def option(reached: str) -> str:
    """The command line's option that changes a limit, from what `Limits.reached` says of it."""
    return "--" + reached.partition(":")[0].removeprefix("limits.").replace("_", "-")
