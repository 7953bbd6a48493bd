"""Limits that end a search before all its trials ran: time, a target, no improvement. Also: the same failure in the first three trials."""

from __future__ import annotations

from vit_search.ledger.events import Commanded, Ended, Event
from vit_search.ledger.trials import Progress
from vit_search.search.commands import Commands, Settings
from vit_search.text import counted


class SearchLimits:
    """Watches the limits of a search.

    Args:
        commands: the current limits. progress: of the search. Both must apply an event before this object does.
        metric: the metric that trials are ranked by. mode: "min" or "max".
        devices: GPUs of every trial (CPU cores if it uses none); None if trials differ.
    """

    def __init__(self, commands: Commands, progress: Progress, *, metric: str, mode: str, devices: float | None) -> None:
        self.ending = ""
        """The limit that was reached, in words; empty if none was. Each running trial then ends after its current epoch."""
        self._commands, self._progress = commands, progress
        self._metric, self._sign, self._devices = metric, 1.0 if mode == "max" else -1.0, devices
        self._best: float | None = None
        self._since_best = 0
        self._completed: dict[int, float] = {}
        """Scores of full-length trials by number, in the order of their ends."""
        self._first: list[Ended] = []

    @property
    def settings(self) -> Settings:
        """The current settings."""
        return self._commands.settings

    def apply(self, event: Event) -> None:
        """Apply one event. A reached limit stays reached until a command changes the limits."""
        if isinstance(event, Ended) and event.outcome != "interrupted":
            self._apply_end(event)
        if isinstance(event, Commanded) and event.name == "set":
            self.ending = ""
        self.ending = self.ending or self._reached()

    def _apply_end(self, event: Ended) -> None:
        trial = self._progress.trials[event.trial]
        value = trial.value(self._metric)
        lost = value is None or trial.outcome in ("diverged", "failed")
        score = None if lost else self._sign * (value or 0.0)
        if score is not None and (self._best is None or score > self._best):
            self._best, self._since_best = score, 0
        else:
            self._since_best += 1
        if trial.outcome == "completed" and score is not None:
            self._completed[trial.number] = score
        if len(self._first) < 3:
            self._first.append(event)

    @property
    def common_failure(self) -> str:
        """The reason why the first three trials failed, if it is the same: the next trial would fail, too. Otherwise empty."""
        reasons = {event.reason.partition(" (see ")[0] for event in self._first if event.outcome == "failed"}
        failed = sum(event.outcome == "failed" for event in self._first)
        return reasons.pop() if failed == 3 and len(reasons) == 1 else ""

    def _reached(self) -> str:
        limits, spent = self.settings, self._progress.spent
        if limits.target is not None:
            there = next((number for number, score in self._completed.items() if score >= self._sign * limits.target), None)
            if there is not None:
                return f"limits.target: trial {there} reached {limits.target:g}"
        if limits.patience is not None and self._since_best >= limits.patience:
            return f"limits.patience: no improvement in {counted(self._since_best, 'trial')}"
        if limits.hours is not None and spent.wall_seconds >= 3600 * limits.hours:
            return f"limits.hours: {limits.hours:g} h are over"
        if limits.device_hours is not None and spent.device_seconds(self._devices) >= 3600 * limits.device_hours:
            return f"limits.device_hours: {limits.device_hours:g} h are spent"
        return ""


def option(ending: str) -> str:
    """The command-line option that changes a limit, from the text of `SearchLimits.ending`."""
    return "--" + ending.partition(":")[0].removeprefix("limits.").replace("_", "-")
