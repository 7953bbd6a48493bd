"""The commands that people give to a running search, such as `pause` or `set trials=40`, and their effect.

control.py brings them to the driver, which checks them with `Commands.answer` and applies them with `Commands.apply`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from vit_search.config.search_file import SearchSpec
from vit_search.config.search_file_blocks import check_target
from vit_search.errors import SpecError
from vit_search.ledger.events import Commanded, Event, Launched
from vit_search.text import counted, nearest

COMMANDS = {
    "pause": "hold all trials after their epoch and free their devices",
    "continue": "go on after a pause",
    "stop": "start no more trials and let the running ones end; with trial=N, stop that trial after its epoch",
    "cancel": "end now; `vit-search resume` goes on",
    "set": "trials=N, concurrency=N, hours=H, device_hours=H, target=VALUE or patience=N",
    "add": "propose a trial with these parameters next",
}


@dataclass(frozen=True)
class Settings:
    """The settings of the search file that the command `set` can change."""

    trials: int
    concurrency: int
    hours: float | None = None
    device_hours: float | None = None
    target: float | None = None
    patience: int | None = None

    @staticmethod
    def of(spec: SearchSpec, events: Iterable[Event] = ()) -> Settings:
        """The settings of a search file, after the commands in `events`."""
        commands = Commands(Settings(spec.trials, spec.concurrency, **spec.limits.model_dump()), spec.metric)
        for event in events:
            commands.apply(event)
        return commands.settings


SETTINGS = tuple(f.name for f in fields(Settings))


class Commands:
    """The state that follows from the commands in a ledger: the settings, a pause, the trials to stop.

    Args:
        settings: those of the search file.
        metric: that trials are ranked by; `target` is a value of it.
    """

    def __init__(self, settings: Settings, metric: str) -> None:
        self.settings, self._metric = settings, metric
        self.paused = False
        self.draining = False
        """Whether no more trials may start."""
        self._stopped: set[int] = set()

    def apply(self, event: Event) -> None:
        """Apply one event. A new driver ends a pause and a `stop` of the whole search."""
        if isinstance(event, Launched):
            self.paused = self.draining = False
        elif isinstance(event, Commanded):
            if event.name == "set":
                self.settings = replace(self.settings, **event.arguments)  # type: ignore[arg-type]
            elif event.name == "pause":
                self.paused = True
            elif event.name == "continue":
                self.paused = self.draining = False
            elif event.name == "stop" and "trial" in event.arguments:
                self._stopped.add(event.arguments["trial"])  # type: ignore[arg-type]
            elif event.name == "stop":
                self.draining = True

    def stop_reason(self, trial: int) -> str:
        """Why a trial must stop after its current epoch; empty if no command stopped it."""
        return "stopped by hand" if trial in self._stopped else ""

    def answer(self, name: str, arguments: Mapping[str, Any], running: list[int], trial_count: int) -> str:
        """Check a command and return the answer for the person. This changes nothing.

        Args:
            running: numbers of the trials that have a process.
            trial_count: number of trials that exist.
        Raises: SpecError if the command is invalid.
        """
        if name == "stop":
            return self._answer_stop(arguments, running)
        if name == "set":
            check_arguments("set", arguments, SETTINGS)
            check_settings(arguments, trial_count=trial_count, metric=self._metric)
            return ", ".join(f"{key} is now {value:g}" for key, value in arguments.items()) + "."
        if name == "add":
            return "it will be the next trial to be proposed."
        if name not in COMMANDS:
            raise SpecError(f"unknown command {name!r}; {nearest(name, list(COMMANDS))}")
        check_arguments(name, arguments, ())
        if name == "pause":
            whose = "its" if len(running) == 1 else "their"
            return f"pausing: {counted(len(running), 'running trial')} will be held after {whose} current epoch."
        if name == "continue":
            return "going on." if self.paused or self.draining else "it was neither paused nor stopping; nothing changed."
        return "ending now; `vit-search resume` goes on from the last checkpoints."

    def _answer_stop(self, arguments: Mapping[str, Any], running: list[int]) -> str:
        check_arguments("stop", arguments, ("trial",))
        if "trial" not in arguments:
            return f"no more trials will start; {counted(len(running), 'running trial')} will go on to the end."
        trial = arguments["trial"]
        if trial not in running:
            raise SpecError(f"trial {trial} is not running; running: {', '.join(map(str, sorted(running))) or 'none'}.")
        return f"trial {trial} will be stopped after its current epoch."


def check_settings(arguments: Mapping[str, Any], trial_count: int, metric: str) -> None:
    """Reject invalid settings. `trial_count` trials exist already.

    Raises: SpecError.
    """
    if not arguments:
        raise SpecError(f"set what? give {', '.join(SETTINGS[:-1])} or {SETTINGS[-1]}.")
    for key, value in arguments.items():
        whole = key in ("trials", "concurrency", "patience")
        least = -math.inf if key == "target" else 0
        if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)) or not least < value < math.inf:
            raise SpecError(f"{key} is {value!r}; give {'a whole number' if whole else 'a number'}{'' if least else ' above 0'}.")
    if "target" in arguments:
        check_target(arguments["target"], metric, "target")
    if arguments.get("trials", trial_count) < trial_count:
        raise SpecError(f"trials={arguments['trials']} is less than the {trial_count} that have started; use `stop` to start no more.")


def check_arguments(command: str, arguments: Mapping[str, Any], names: tuple[str, ...]) -> None:
    """Reject an argument that the command does not have.

    Raises: SpecError.
    """
    for key in arguments:
        if key not in names:
            raise SpecError(f"{command}: unknown argument {key!r}; {nearest(key, names) if names else 'it takes none.'}")
