"""The state of a search in one word, from its ledger.

`status`, `show`, `list`, the report and MLflow all use it, so they always agree.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vit_search.config.search_file import SearchSpec
from vit_search.ledger import searches
from vit_search.ledger.events import Commanded, Event, Launched, Left, Reported, changed_settings
from vit_search.ledger.file import is_held, read_events
from vit_search.ledger.searches import SearchFacts
from vit_search.ledger.trials import Progress, Spent, Trial

WORDS = {
    "starting": "a driver prepares its data, MLflow and Ray",
    "running": "a driver is at work",
    "paused": "its trials are held, and none starts",
    "stopping": "no more trials start; the running ones go on to their end",
    "ending": "its driver ends the trials, or sends the last records to MLflow",
    "waiting for a driver": "the cluster's keeper is to take it up",
    "finished": "all trials are over, or a limit was reached",
    "stopped": "`stop` ended it before its last trial",
    "interrupted": "cancelled, or its driver died or met an error",
    "failed": "no trial reached full length",
    "refused": "its driver refused it before its first trial",
}

DRIVEN = ("running", "paused", "stopping", "ending")
"""The states in which a driver holds the ledger."""


@dataclass(frozen=True)
class SearchState:
    """The state of a search."""

    word: str
    """A key of WORDS."""
    reason: str = ""
    """Why, in one line; empty if unknown."""

    @property
    def driven(self) -> bool:
        """Whether a driver runs the search."""
        return self.word in DRIVEN

    @property
    def resumable(self) -> bool:
        """Whether trials are left that only a `resume` would continue."""
        return self.word in ("interrupted", "stopped")


def of_driver(*, paused: bool, stopping: bool, ending: bool) -> str:
    """The state of a search that a driver runs, from the commands since its launch."""
    return "ending" if ending else "paused" if paused else "stopping" if stopping else "running"


def of_events(
    events: Sequence[Event], trials: Collection[Trial], wanted: int, *, driven: bool, awaited: bool = False, closed: bool = False
) -> SearchState:
    """The state of a search.

    Args:
        trials: as they follow from the events.
        wanted: how many trials the search shall have.
        driven: whether a driver holds the ledger.
        awaited: whether a cluster's keeper will submit the search again.
        closed: whether hindsight.json exists. Versions before 0.2 wrote it at the end, but no event `Left`.
    """
    launch = events[_last_launch(events) :]
    left = next((event for event in reversed(launch) if isinstance(event, Left)), None)
    if driven:
        return SearchState("ending", "the last records are being sent to MLflow") if left else SearchState(_commanded_state(launch))
    if left is not None and left.state != "interrupted":
        return SearchState(left.state, left.reason)
    over = sum(trial.over for trial in trials)
    if left is None and (over >= wanted or (closed and over == len(trials))):  # an older version, or killed after the last trial
        return SearchState("finished" if any(trial.outcome == "completed" for trial in trials) else "failed")
    if awaited:
        return SearchState("waiting for a driver")
    cut_off = any(isinstance(event, Launched | Reported) for event in launch[-1:])
    died = left is None and (cut_off or any(trial.outcome == "running" for trial in trials))
    return SearchState("interrupted", left.reason if left else "its driver died" if died else "")


def _last_launch(events: Sequence[Event]) -> int:
    return next((i for i in range(len(events) - 1, -1, -1) if isinstance(events[i], Launched)), 0)


def _commanded_state(launch: Sequence[Event]) -> str:
    """The state according to the commands since the last launch."""
    paused = stopping = ending = False
    for event in launch:
        if isinstance(event, Commanded):
            if event.name == "continue":
                paused = stopping = False
            paused = paused or event.name == "pause"
            stopping = stopping or (event.name == "stop" and "trial" not in event.arguments)
            ending = ending or event.name == "cancel"
    return of_driver(paused=paused, stopping=stopping, ending=ending)


@dataclass(frozen=True)
class Snapshot:
    """A search at one moment."""

    spec: SearchSpec
    facts: SearchFacts
    events: list[Event]
    trials: dict[int, Trial]
    """By number. An unfinished trial has its current outcome: running, held or waiting; without a driver: interrupted."""
    spent: Spent
    wanted: int
    """Number of trials that the search shall have, after the commands so far."""
    state: SearchState


def read(folder: Path, *, driven: bool | None = None, awaited: bool = False) -> Snapshot:
    """Read a search as it is now. Any process may call this at any time.

    Args:
        driven: whether a driver runs the search; by default, whether one holds the ledger, as it also does while it writes the last report.
        awaited: whether a cluster's keeper will submit the search again.
    Raises: SearchError if the folder holds no search, or its ledger is damaged.
    """
    spec, facts = searches.read(folder)
    path = folder / "ledger.jsonl"
    before = path.exists() and is_held(path)
    events = read_events(path)
    if driven is None:
        driven = before or is_held(path)  # a driver that started in the meantime has already written its launch
    progress = Progress.of(events, spec.epochs)
    trials = progress.trials
    searches.check_trials(folder, spec, trials.values())
    wanted = int(changed_settings(events).get("trials", spec.trials))
    closed = searches.read_hindsight(folder) is not None
    state = of_events(events, trials.values(), wanted, driven=driven, awaited=awaited, closed=closed)
    return Snapshot(spec, facts, events, as_they_stand(trials, events, state), progress.spent, wanted, state)


def as_they_stand(trials: Mapping[int, Trial], events: Sequence[Event], state: SearchState) -> dict[int, Trial]:
    """The trials with the current outcome of the unfinished ones, which the ledger calls running; see Snapshot."""
    begun: set[int] = set()
    held: set[int] = set()
    if state.word == "paused":
        launch = events[_last_launch(events) :]
        pause = max(i for i, event in enumerate(launch) if isinstance(event, Commanded) and event.name == "pause")
        begun = {event.trial for event in launch if isinstance(event, Reported)}
        held = {event.trial for event in launch[pause:] if isinstance(event, Reported)}

    def now(trial: Trial) -> Trial:
        if trial.outcome != "running" or (state.driven and state.word != "paused"):
            return trial
        if not state.driven:
            return replace(trial, outcome="interrupted", reason="its driver died")
        return replace(trial, outcome="held" if trial.number in held else "running" if trial.number in begun else "waiting")

    return {number: now(trial) for number, trial in trials.items()}
