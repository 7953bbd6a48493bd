"""When a search is done before all of its trials are: time spent, a target reached, no improvement."""

from __future__ import annotations

from collections.abc import Mapping

from vit_search.spec.search_file import Limits as Asked
from vit_search.tracking.ledger import Ended, Event, Spent, Trial


class Limits:
    """What a search file's `limits` come to, event by event; a ledger's events fed again rebuild it.

    Args:
        asked: the section of the search file; `hours` and `device_hours` may be changed while the search runs.
        metric: what trials are ranked by. mode: "min" or "max".
        devices: GPUs, or CPU cores where it uses none, that one trial holds.
    """

    def __init__(self, asked: Asked, *, metric: str, mode: str, devices: float) -> None:
        self.hours, self.device_hours = asked.hours, asked.device_hours
        self._asked, self._metric, self._sign, self._devices = asked, metric, 1.0 if mode == "max" else -1.0, devices
        self._best: float | None = None
        self._since_best = 0
        self._reached_by: int | None = None

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
        target = self._asked.target
        if trial.outcome == "completed" and score is not None and target is not None and score >= self._sign * target:
            self._reached_by = trial.number

    def reached(self, spent: Spent) -> str | None:
        """The limit that ends the search, in words; None while none does."""
        if self._reached_by is not None:
            return f"limits.target: trial {self._reached_by} reached {self._asked.target:g}"
        if self._asked.patience is not None and self._since_best >= self._asked.patience:
            return f"limits.patience: no improvement in {self._since_best} trials"
        if self.hours is not None and spent.wall_seconds >= 3600 * self.hours:
            return f"limits.hours: {self.hours:g} h are over"
        if self.device_hours is not None and self._devices * spent.trial_seconds >= 3600 * self.device_hours:
            return f"limits.device_hours: {self.device_hours:g} h are spent"
        return None
