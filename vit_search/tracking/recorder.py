"""Records a search in MLflow: one parent run for the search, and one child run for each trial. The driver does this in a thread.

The events come from the ledger, which is on disk first. `recorded.jsonl` beside it says which events MLflow has, and in which runs.
Sending an event again changes nothing: a run is looked up before it is created, and a metric point has the time of its event. So
MLflow may be away for any time. A later driver, or `vit-search sync`, sends the rest.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Metric, RunTag
from mlflow.exceptions import MlflowException

from vit_search.config.search_file import SearchSpec
from vit_search.errors import CheckpointError, TrackingError
from vit_search.ledger.events import Broke, Ended, Event, Proposed, Reported, changed_settings
from vit_search.ledger.searches import Hindsight, SearchFacts
from vit_search.ledger.trials import Progress
from vit_search.tracking import artifacts, datasets, saved_views
from vit_search.tracking.mlflow_client import client_for, in_short, public_uri
from vit_search.tracking.mlflow_errors import ignore_missing, is_refused
from vit_search.tracking.outage import GivenUpError, PersistentCaller, call_patiently
from vit_search.tracking.search_runs import SearchRuns, alive_tags
from vit_search.tracking.summary import describe, last_steps, steps_for_left_trials
from vit_search.tracking.trial_record import TrialEvent, log_inputs, log_points, send_trial
from vit_search.tracking.uris import SQLITE

_log = logging.getLogger(__name__)

GATHER_S = 1.0
"""Seconds to wait for more events after the first, so that all go in one call. MLflow's pages are behind by this much."""

LOOK_EVERY_S = 4.0
"""How often the parent run's tag `command` is read."""

DESCRIBE_EVERY_S = 10.0
"""How often the parent run's description and the ranks of its best trials are updated."""

ALIVE_EVERY_S = 60.0
"""How often the parent run's tag `alive_at` is updated. From it tracking/doctor.py sees that a driver is dead."""

ABANDONED_WITHIN_S = 2.0
"""How long a search that a second Ctrl-C ends waits for the call in progress."""

RANKED_LIVE, RANKED = 10, 100
"""How many trials of the leaderboard carry their rank as a tag: while a search runs, and after its end."""


class Recorder:
    """Sends a search's events to MLflow from its own thread. `wake` tells it that there are new events."""

    def __init__(self, client: MlflowClient, experiment_id: str) -> None:
        self.client, self.experiment_id = client, experiment_id
        self._wanted = 0
        """Number of trials that the search will run."""
        self._apply_command: Callable[[str], str] | None = None
        self._events: list[Event] = []
        self._sync: Callable[[], None] = lambda: None
        self._taken = 0
        """Number of events that MLflow has."""
        self._caller = PersistentCaller()
        self._progress = Progress(0)
        """The search's progress after the events that were applied here."""
        self._folded = 0
        """Number of events that were applied to `_progress`."""
        self._runs: SearchRuns
        self.ready = False
        """Whether it is known which events MLflow has."""
        self._created_again: set[int] = set()
        """Trials whose run was deleted in MLflow and created again. This happens at most once."""
        self._best: float | None = None
        self._news, self._closing = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._work, name="recorder", daemon=True)
        self._looked = self._described = self._alive = 0.0

    @property
    def parent_run(self) -> str:
        """Id of the search's own run; empty until it is found or created."""
        return self._runs.parent_run

    @property
    def public_uri(self) -> str:
        """The tracking URI without passwords."""
        return public_uri()

    @property
    def behind(self) -> int:
        """Number of events that MLflow does not have yet."""
        return len(self._events) - self._taken

    @staticmethod
    def connect(tracking_uri: str | None, experiment: str) -> Recorder:
        """Connect to MLflow and find or create the experiment for searches of this name.

        Raises: TrackingError if MLflow cannot be reached, or if the artifacts of a SQLite store are missing.
        """
        client = client_for(tracking_uri)
        uri = mlflow.get_tracking_uri()
        database = Path(uri.removeprefix(SQLITE)) if uri.startswith(SQLITE) else None
        existing = client.get_experiment_by_name(experiment)
        if existing is not None and existing.lifecycle_stage == "deleted":
            raise TrackingError(f"{experiment}: MLflow's experiment of this name is deleted; restore it there, or rename the search.")
        if existing is not None:
            if database and (missing := artifacts.missing(database, existing.artifact_location)):
                home = artifacts.artifacts_folder(database, experiment)
                raise TrackingError(f"{missing}: the artifacts of {experiment} were in this folder, and it is gone; bring it to {home}.")
            return Recorder(client, existing.experiment_id)
        location = artifacts.make_artifacts_folder(database, experiment).as_uri() if database else None
        try:
            kind = {"mlflow.experimentKind": "custom_model_development"}  # MLflow's pages for training, not those for chat
            return Recorder(client, client.create_experiment(experiment, artifact_location=location, tags=kind))
        except MlflowException as error:
            raise TrackingError(f"{experiment}: MLflow refuses an experiment of this name ({error.message}).") from None

    def open(
        self,
        spec: SearchSpec,
        facts: SearchFacts,
        folder: Path,
        events: list[Event],
        sync: Callable[[], None] = lambda: None,
        apply_command: Callable[[str], str] | None = None,
    ) -> None:
        """Find this search's runs or create its parent run, and start to send what MLflow does not have.

        Args:
            events: the ledger's own list, which grows.
            sync: forces the events to the disk. It is called before they are sent, so that a power cut cannot undo them.
            apply_command: carries out a command that a person wrote as the parent run's tag `command`, and returns the answer.
        """
        self._apply_command, self._progress = apply_command, Progress(spec.epochs)
        self._runs, self._events, self._sync = SearchRuns(self.client, self.experiment_id, spec, facts, folder), events, sync
        self._wanted = changed_settings(events).get("trials", spec.trials)
        self._news.set()
        self._thread.start()

    def wake(self, event: Event | None = None) -> None:
        """Wake the thread because there are new events. Never blocks and never fails."""
        self._news.set()

    def close(self, status: str, hindsight: Hindsight | None, *, patience_s: float = 60) -> bool:
        """Send the remaining events, then the leaderboard, the report and the best models. End the parent run with a status.

        Returns: False if MLflow did not answer for `patience_s`. `vit-search sync` can then send the rest later.
        """
        self._closing.set()
        self._news.set()
        before = -1
        while self._thread.is_alive() and self._caller.count > before:  # it may be behind, but still make progress
            before = self._caller.count
            self._thread.join(timeout=patience_s)
        name = self._runs.facts.search
        if self._thread.is_alive() or self.behind:
            self._caller.given_up.set()
            _log.warning("MLflow has not got all of it: the rest stays in the ledger; `vit-search sync %s` sends it.", name)
            return False
        reasons: list[str] = []
        for step in self._last_steps(status, hindsight):
            try:
                call_patiently(step, patience_s)
            except (MlflowException, OSError, CheckpointError) as error:
                if in_short(error) not in reasons:
                    reasons.append(in_short(error))
                    _log.warning("MLflow did not get all of the summary (%s); `vit-search sync %s` sends it again.", reasons[-1], name)
                if not is_refused(error) and not isinstance(error, CheckpointError):  # MLflow is away: the other steps would wait in vain
                    break
        if reasons:
            with contextlib.suppress(MlflowException, OSError):
                self.client.set_terminated(self.parent_run, status)
        return not reasons

    def abandon(self) -> None:
        """Send nothing more, and end the parent run as KILLED, within moments. `resume` opens it again; `sync` sends the rest."""
        if self._thread.ident is None:  # it was never opened
            return
        self._closing.set()
        self._caller.given_up.set()
        self._news.set()
        self._thread.join(timeout=ABANDONED_WITHIN_S)  # it may be about to set a status to RUNNING
        if not self.parent_run:
            return
        with contextlib.suppress(MlflowException, OSError):  # MLflow is away; `doctor` finds the runs later
            self.client.log_batch(self.parent_run, tags=[RunTag("state", "interrupted")])
            self.client.set_terminated(self.parent_run, "KILLED")
            for number, trial in list(self._progress.trials.items()):
                if not trial.over and number in self._runs.by_trial:
                    self.client.set_terminated(self._runs.by_trial[number], "KILLED")

    def discard(self) -> None:
        """Delete the run of a search that failed before its first trial."""
        self._closing.set()
        self._caller.given_up.set()
        self._news.set()
        self._thread.join(timeout=30)
        if self.parent_run:
            with contextlib.suppress(MlflowException, OSError):  # MLflow is away; `doctor` finds the run later
                self.client.delete_run(self.parent_run)

    def _last_steps(self, status: str, hindsight: Hindsight | None) -> Iterator[Callable[[], object]]:
        """What is sent at the end of a search, step by step."""
        yield self._runs.find_trial_runs
        for number in self._without_run():
            yield partial(self._create_again, number)
        yield from steps_for_left_trials(self._runs, self._progress)
        yield partial(self._runs.drop_doubles, doubtful=self._caller.outage_reported)
        yield partial(describe, self._runs, self._progress, self._events[:], self._wanted, RANKED, driven=False)
        yield from last_steps(self._runs, self._progress, self._events, status, hindsight, self._best)

    def _take_up(self) -> None:
        """Find the search's runs or create its parent run, and apply the events that MLflow already has."""
        self._taken = self._runs.find_or_make(len(self._events))
        for event in self._events[: self._taken]:
            self._fold(event)
            if isinstance(event, Ended):
                self._improved(event)
        self._runs.to_reopen = {number for number, trial in self._progress.trials.items() if not trial.over}
        self.ready = True

    def _work(self) -> None:
        try:
            self._caller.call(self._take_up)
            if self.ready:  # otherwise MLflow has refused it for good, and that is logged
                self._caller.call(self._write_views)
                self._caller.call(partial(log_inputs, self._runs, self.parent_run, datasets.splits(self._runs.facts)))
                self._drain()
        except GivenUpError:
            pass
        except Exception:  # a bug of ours: the search continues, and reports at its end what is missing in MLflow
            _log.exception("MLflow gets no more of this search.")

    def _write_views(self) -> None:
        """Make the experiment's page show the newest search's metric, outcome and searched parameters."""
        spec, experiment = self._runs.spec, self.client.get_experiment(self.experiment_id)
        created_at = experiment.creation_time or 0
        wanted = saved_views.tags(metric=spec.metric, mode=spec.mode, searched=spec.space.searched, created_at=created_at)
        for name, value in wanted.items():
            if experiment.tags.get(name) != value and not self._runs.facts.promotes:  # a promotion searches nothing
                self.client.set_experiment_tag(self.experiment_id, name, value)

    def _drain(self) -> None:
        while True:
            for number in self._without_run():
                self._caller.call(self._create_again, number)
            self._news.wait(LOOK_EVERY_S)
            if self._news.is_set():
                self._closing.wait(GATHER_S)
            self._news.clear()
            closing, ahead = self._closing.is_set(), len(self._events)
            if ahead > self._taken:
                self._sync()
                self._send_all(self._events[self._taken : ahead])
                self._taken = ahead
                self._runs.note(taken=ahead)
            if closing and self._taken == len(self._events):
                return
            try:
                self._between_events()
            except Exception as error:  # it may work the next time
                if not is_refused(error):  # for example because the search's own run was deleted, which is reported at the end
                    self._caller.report_outage(error)

    def _between_events(self) -> None:
        """Carry out a command that a person wrote as a tag of the parent run, and update the description."""
        now = time.monotonic()
        if now - self._looked >= LOOK_EVERY_S:
            self._looked = now
            text = self.client.get_run(self.parent_run).data.tags.get("command")
            if text and self._apply_command is not None:
                with ignore_missing():
                    self.client.delete_tag(self.parent_run, "command")
                self.client.set_tag(self.parent_run, "command_answer", f"{text}: {self._apply_command(text)}")
        if now - self._described >= DESCRIBE_EVERY_S:
            self._described = now
            describe(self._runs, self._progress, self._events[:], self._wanted, RANKED_LIVE, driven=True)
        if now - self._alive >= ALIVE_EVERY_S:
            self._alive = now
            self.client.log_batch(self.parent_run, tags=alive_tags())

    def _fold(self, event: Event) -> None:
        self._progress.apply(event)
        self._folded += 1
        self._wanted = int(changed_settings([event]).get("trials", self._wanted))

    def _send_all(self, events: list[Event]) -> None:
        """Send each trial's new events in as few calls as MLflow allows, because a search may be thousands of events ahead of it."""
        of_trial: dict[int, list[TrialEvent]] = {}
        improved: list[Metric] = []
        for event in events:
            self._fold(event)
            if isinstance(event, (Proposed, Reported, Broke, Ended)):  # other events belong to no trial
                of_trial.setdefault(event.trial, []).append(event)
            if isinstance(event, Ended):
                improved += self._improved(event)
        for trial, news in of_trial.items():
            self._caller.call(self._send, trial, news)
        if improved:
            self._caller.call(partial(log_points, self.client, self.parent_run, improved, [], []))

    def _improved(self, event: Ended) -> list[Metric]:
        """A new point of the parent run's curve: the best full-length trial so far, over the number of finished trials."""
        metric, sign = self._runs.spec.metric, 1 if self._runs.spec.mode == "max" else -1
        value = self._progress.trials[event.trial].value(metric) if event.outcome == "completed" else None
        if value is None or (self._best is not None and sign * value <= sign * self._best):
            return []
        self._best = value
        return [Metric(f"best/{metric}", value, int(event.at * 1000), sum(trial.over for trial in self._progress.trials.values()))]

    def _send(self, number: int, news: list[TrialEvent]) -> None:
        """Update a trial's run, or create it again if it was deleted. Repeating this changes nothing."""
        try:
            send_trial(self._runs, self._progress.trials[number], news)
        except MlflowException as error:
            if not is_refused(error) or number not in self._runs.by_trial or self._runs.is_there(self._runs.by_trial[number]):
                raise
            self._runs.forget(number)
            self._create_again(number)

    def _without_run(self) -> list[int]:
        """Trials whose run is missing and was not created again yet. If MLflow refuses to create it, that is not repeated."""
        return [number for number in self._progress.trials if number not in self._runs.by_trial and number not in self._created_again]

    def _create_again(self, number: int) -> None:
        """Create a trial's deleted run again, with everything it held."""
        if number not in self._created_again:
            _log.warning("MLflow has no run of trial %d any more; it is created again.", number)
        self._created_again.add(number)
        events = [e for e in self._events[: self._folded] if isinstance(e, TrialEvent) and e.trial == number]
        send_trial(self._runs, self._progress.trials[number], events)
