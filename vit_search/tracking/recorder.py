"""One parent run per search and one child run per trial in MLflow, written by the driver, off the scheduler's thread.

The ledger is the spool: what MLflow has not got yet can always be sent again from it. Sending twice changes nothing:
runs are found again by their tags, and a metric point carries the time of its event.
"""

from __future__ import annotations

import contextlib
import getpass
import logging
import os
import queue
import re
import threading
import time
import urllib.request
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit, urlunsplit

for _name, _value in {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_MODEL_CATALOG_URI": "",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # our own thread tries again; a short call ends soon when a search does
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "GIT_PYTHON_REFRESH": "quiet",
}.items():
    os.environ.setdefault(_name, _value)

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException

from vit_search.errors import CheckpointError, SearchError, TrackingError
from vit_search.spec.config import EpochResult
from vit_search.tracking.ledger import Commanded, Ended, Event, Infeasible, Launched, Proposed, Reported, Trial
from vit_search.tracking.searches import SearchFacts

_log = logging.getLogger(__name__)

STATUS = {"completed": "FINISHED", "stopped": "FINISHED", "diverged": "FAILED", "failed": "FAILED", "interrupted": "KILLED"}
"""Run status of each outcome. A stopped trial did what it should; its tag `outcome` tells it from a completed one."""

REFUSALS = {"INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "PERMISSION_DENIED", "BAD_REQUEST"}
"""Error codes of MLflow that sending again does not mend."""

DEFAULT_DATABASE = "mlruns.db"

GATHER_S = 1.0
"""For so long after an event others are waited for, to be sent in one call; until then MLflow's pages are behind."""

LOOK_EVERY_S = 4.0
"""How often the parent run's tag `command` is looked at."""


def resolve_uri(given: str | None) -> str:
    """The tracking URI: as given, else MLFLOW_TRACKING_URI, else SQLite in ./mlruns.db."""
    return given or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path(DEFAULT_DATABASE).resolve()}"


def client_for(given: str | None) -> MlflowClient:
    """A client whose server or database answers.

    Raises: TrackingError, one line, when it does not.
    """
    uri = resolve_uri(given)
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    parts = urlsplit(uri)
    if parts.scheme in ("http", "https"):
        if parts.password:
            raise TrackingError(
                "the tracking URI carries a password; drop it and set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD."
            )
        try:
            with urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=10):  # noqa: S310 -- http(s) only, by the test above
                pass
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", error)
            raise TrackingError(
                f"{uri}: the tracking server does not answer ({reason}); start it, or drop --tracking-uri for ./{DEFAULT_DATABASE}."
            ) from None
    elif parts.scheme == "sqlite":
        place = Path(uri.removeprefix("sqlite:///"))
        if not os.access(place if place.exists() else place.parent, os.W_OK):
            raise TrackingError(f"{place}: the tracking database cannot be written; name another with --tracking-uri.")
    elif parts.scheme not in ("postgresql", "postgresql+psycopg2", "mysql", "mysql+pymysql"):
        raise TrackingError(f"{uri}: no tracking URI that MLflow writes to; use http://…, sqlite:///FILE or postgresql://….")
    mlflow.set_tracking_uri(uri)
    client = MlflowClient(uri)
    try:
        client.search_experiments(max_results=1)
    except Exception as error:
        raise TrackingError(
            f"{_public(uri)}: the tracking store does not answer ({str(error).splitlines()[0]}); mend it or name another."
        ) from None
    return client


def command(tracking_uri: str, search: str, text: str, wait_s: float) -> str:
    """Give a running search a command through MLflow, from wherever its folder is not.

    Raises: SearchError when no running search has this name, or it does not answer in time; the command is then withdrawn.
    """
    client = client_for(tracking_uri)
    if not re.fullmatch(r"[A-Za-z0-9._-]+", search):
        raise SearchError(f"{search!r} is no search's name; give it as MLflow's run is named, e.g. digits-1.")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    found = client.search_runs(
        experiments, f"attributes.run_name = '{search}' and tags.search = '{search}' and attributes.status = 'RUNNING'"
    )
    if not found:
        raise SearchError(f"{search}: no running search of this name in {_public(tracking_uri)}; see its page for its state.")
    run = found[0].info.run_id
    if "command_answer" in found[0].data.tags:
        client.delete_tag(run, "command_answer")
    client.set_tag(run, "command", text)
    end = time.monotonic() + wait_s
    while time.monotonic() < end:
        tags = client.get_run(run).data.tags
        if "command_answer" in tags:
            return tags["command_answer"].removeprefix(f"{text}: ")
        time.sleep(0.5)
    if "command" in client.get_run(run).data.tags:
        client.delete_tag(run, "command")
    raise SearchError(f"{search}: the search did not answer within {wait_s:g} s; see whether its driver still runs, then ask again.")


_OfTrial = Proposed | Reported | Ended


class Recorder:
    """Sends a search's events to MLflow from a thread of its own; `send` only puts them into a queue."""

    def __init__(self, client: MlflowClient, experiment_id: str) -> None:
        self.client, self.experiment_id = client, experiment_id
        self.parent_run = ""
        self._facts: SearchFacts
        self._runs: dict[int, str] = {}
        self._queue: queue.Queue[Event | None] = queue.Queue()
        self._thread = threading.Thread(target=self._drain, name="recorder", daemon=True)
        self.obey: Callable[[str], str] | None = None
        """Does what a tag `command` of the parent run says, and gives the answer."""
        self._looked = time.monotonic()
        self._sent = 0
        """Steps that MLflow has taken, to see that it is at work."""
        self._said_away = False
        self._interrupted: set[int] = set()

    @property
    def public_uri(self) -> str:
        """The tracking URI without what a URI may carry in secret."""
        return _public(mlflow.get_tracking_uri())

    @staticmethod
    def connect(tracking_uri: str | None, experiment: str) -> Recorder:
        """Reach MLflow and find or make the experiment that holds the searches of this name.

        Raises: TrackingError when it cannot be reached.
        """
        client = client_for(tracking_uri)
        found = client.get_experiment_by_name(experiment)
        if found is not None:
            return Recorder(client, found.experiment_id)
        place = None
        if mlflow.get_tracking_uri().startswith("sqlite"):
            place = (Path("mlartifacts").resolve() / experiment).as_uri()
        try:
            kind = {"mlflow.experimentKind": "custom_model_development"}  # the pages for training, not those for chat
            return Recorder(client, client.create_experiment(experiment, artifact_location=place, tags=kind))
        except MlflowException as error:
            raise TrackingError(f"{experiment}: MLflow refuses an experiment of this name ({error.message}).") from None

    def open(self, facts: SearchFacts, folder: Path, events: Iterable[Event]) -> None:
        """Find this search's runs or make its parent run, send again what a dead driver may not have sent, and listen."""
        self._facts = facts
        for run in self._find(f"tags.search_id = '{facts.search_id}'"):
            self.parent_run = run.info.run_id
        if self.parent_run:
            for run in self._find(f"tags.`mlflow.parentRunId` = '{self.parent_run}'"):
                self._runs[int(run.data.tags["trial"])] = run.info.run_id
            self.client.update_run(self.parent_run, status="RUNNING")
        else:
            tags = {
                "search": facts.search,
                "search_id": facts.search_id,
                "search_folder": str(folder.resolve()),
                "metric": f"{facts.mode} {facts.metric}",
                "mlflow.user": getpass.getuser(),
                "mlflow.source.name": "vit-search run",
                "mlflow.source.type": "LOCAL",
                "data_hash": facts.data_hash,
                "code_version": facts.code_version,
                "mlflow.note.content": f"Search **{facts.search}**: its trials are the runs below. "
                f"Filters: `tags.search = '{facts.search}' and tags.outcome = 'stopped'`, or `'completed'`, `'failed'`.",
            }
            self.parent_run = self.client.create_run(self.experiment_id, run_name=facts.search, tags=tags).info.run_id
            self.client.log_text(self.parent_run, facts.text, "search.yaml")
            self.client.log_dict(self.parent_run, facts.resolved, "resolved.json")
            self.client.log_dict(self.parent_run, facts.environment, "environment.json")
        for event in events:
            self._queue.put(event)
        self._thread.start()

    def send(self, event: Event) -> None:
        """Queue an event; never blocks, never fails."""
        self._queue.put(event)

    def close(
        self,
        trials: list[Trial],
        *,
        status: str,
        winner: Trial | None,
        checkpoint: Path | None,
        figures: Mapping[str, float] = MappingProxyType({}),
        plan: Mapping[str, Any] | None = None,
        patience_s: float = 60,
    ) -> bool:
        """Send all that is left, then the leaderboard, the best model and further figures, and end the parent run with a status.

        `plan`, what was foretold beside what came, becomes an artifact.

        Returns: False when MLflow stayed away for `patience_s`; `vit-search resume` sends the rest later.
        """
        self._queue.put(None)
        left = self._sent
        self._thread.join(timeout=patience_s)
        while self._thread.is_alive() and self._sent > left:  # it is behind, but at work
            left = self._sent
            self._thread.join(timeout=patience_s)
        if self._thread.is_alive():
            _log.warning("MLflow is away: what it has not got stays in the ledger; `vit-search resume` sends it.")
            return False
        try:
            self._summarise(trials, winner, figures)
            if plan is not None:
                self.client.log_dict(self.parent_run, dict(plan), "plan.json")
            if winner is not None and checkpoint is not None:
                self._log_winner(self._runs[winner.number], STATUS[winner.outcome], checkpoint)
            self.client.set_terminated(self.parent_run, status)
        except (MlflowException, OSError, CheckpointError) as error:
            _log.warning("MLflow did not get the summary (%s); `vit-search resume` sends it again.", str(error).splitlines()[0])
            return False
        return True

    def _summarise(self, trials: list[Trial], winner: Trial | None, figures: Mapping[str, float]) -> None:
        """The leaderboard as a table, counts of outcomes, and who won."""
        metric = self._facts.metric
        rows = [_row(trial, metric) for trial in trials]
        columns = list(dict.fromkeys(name for row in rows for name in row))
        table = {"columns": columns, "data": [[row.get(name) for name in columns] for row in rows]}
        self.client.log_dict(self.parent_run, table, "leaderboard.json")  # log_table would append to an older one
        self.client.set_tag(self.parent_run, "mlflow.loggedArtifacts", '[{"path": "leaderboard.json", "type": "table"}]')
        outcomes = [trial.outcome for trial in trials]
        counts = {"trials": len(trials)} | {name: outcomes.count(name) for name in ("completed", "stopped", "failed", "diverged")}
        counts["epochs_trained"] = sum(len(trial.results) for trial in trials)
        now = int(time.time() * 1000)
        points = [Metric(name, float(value), now, 0) for name, value in {**counts, **figures}.items()]
        self.client.log_batch(self.parent_run, metrics=points)
        if winner is not None:
            self.client.log_metric(self.parent_run, f"best_{metric}", winner.value(metric) or 0.0)
            self.client.set_tag(self.parent_run, "best_trial", winner.number)

    def _log_winner(self, run: str, status: str, checkpoint: Path) -> None:
        """The best trial's model, unless an earlier end of this search has logged it."""
        from vit_search.tracking.model_package import log_model  # torch is imported here, at the end, and not by every command

        self.client.set_tag(run, "rank", 1)
        if not self.client.search_logged_models([self.experiment_id], filter_string=f"source_run_id = '{run}'"):
            log_model(checkpoint, run_id=run, end_status=status)

    def _find(self, condition: str) -> list[Any]:
        found: list[Any] = []
        token = None
        while True:
            page = self.client.search_runs([self.experiment_id], condition, max_results=1000, page_token=token)
            found.extend(page)
            token = page.token
            if not token:
                return found

    def _drain(self) -> None:
        while True:
            batch: list[Event | None] = []
            with contextlib.suppress(queue.Empty):
                batch.append(self._queue.get(timeout=LOOK_EVERY_S))
                end = time.monotonic() + GATHER_S
                while batch[-1] is not None:
                    batch.append(self._queue.get(timeout=max(0.0, end - time.monotonic())))
            ends = None in batch
            self._send_all([event for event in batch if event is not None])
            if ends:
                return
            if time.monotonic() - self._looked >= LOOK_EVERY_S:
                self._looked = time.monotonic()
                with contextlib.suppress(Exception):  # MLflow is away: `_insist` says so; the next look may find it
                    self._look()

    def _look(self) -> None:
        """Obey a command that somebody has written as a tag on the parent run, here or in MLflow's pages."""
        text = self.client.get_run(self.parent_run).data.tags.get("command")
        if text and self.obey is not None:
            self.client.delete_tag(self.parent_run, "command")
            self.client.set_tag(self.parent_run, "command_answer", f"{text}: {self.obey(text)}")

    def _send_all(self, events: list[Event]) -> None:
        """All that is new of a trial goes in as few calls as MLflow allows: a search may outrun it by thousands."""
        of_trial: dict[int, list[_OfTrial]] = {}
        for event in events:
            if isinstance(event, (Proposed, Reported, Ended)):
                of_trial.setdefault(event.trial, []).append(event)
            else:
                assert isinstance(event, (Infeasible, Launched, Commanded))  # of no trial: they have no run
        for trial, news in of_trial.items():
            self._insist(self._send, trial, news)

    def _insist(self, step: Any, *args: Any) -> None:
        """Try until MLflow answers; a search goes on meanwhile. What MLflow refuses for good is said and left out."""
        pause = 1.0
        while True:
            try:
                step(*args)
                self._sent += 1
                return
            except Exception as error:
                if isinstance(error, MlflowException) and error.error_code in REFUSALS:
                    _log.warning("MLflow refuses a record of trial %s (%s).", args[0], error.message)
                    return
                if not self._said_away:
                    self._said_away = True
                    _log.warning("MLflow does not answer (%s); the search goes on and sends it later.", str(error).splitlines()[0])
                time.sleep(pause)
                pause = min(pause * 2, 5)

    def _send(self, trial: int, news: list[_OfTrial]) -> None:
        """Bring a trial's run up to date. Doing it again changes nothing."""
        proposed = next((event for event in news if isinstance(event, Proposed)), None)
        if proposed is not None and trial not in self._runs:
            tags = {
                "mlflow.parentRunId": self.parent_run,
                "search": self._facts.search,
                "trial": str(trial),  # the REST client takes text alone
                "outcome": "running",
                "data_hash": self._facts.data_hash,
            }
            run = self.client.create_run(self.experiment_id, int(proposed.at * 1000), run_name=f"trial {trial}", tags=tags)
            self._runs[trial] = run.info.run_id
        elif proposed is not None or (trial in self._interrupted and isinstance(news[0], Reported)):
            self.client.update_run(self._runs[trial], status="RUNNING")
            self.client.set_tag(self._runs[trial], "outcome", "running")
            self._interrupted.discard(trial)
        run_id, last = self._runs[trial], news[-1]
        metrics = [point for event in news if isinstance(event, Reported) for point in _points(event)]
        tags_now = [RunTag("outcome", last.outcome)] if isinstance(last, Ended) else []
        if isinstance(last, Ended) and last.reason:
            tags_now.append(RunTag("reason", last.reason[:5000]))
        params = self._params(proposed) if proposed is not None else []
        try:
            self._log(run_id, metrics, params, tags_now)
        except MlflowException as error:
            if error.error_code not in REFUSALS:
                raise
            _log.warning("MLflow refuses a record of trial %s (%s); the rest of it is sent.", trial, error.message)
            for some_metrics, some_params, some_tags in ((metrics, [], []), ([], params, []), ([], [], tags_now)):
                with contextlib.suppress(MlflowException):
                    self._log(run_id, some_metrics, some_params, some_tags)
        if isinstance(last, Ended):
            self.client.set_terminated(run_id, STATUS[last.outcome], int(last.at * 1000))
            if last.outcome == "interrupted":
                self._interrupted.add(trial)

    def _log(self, run_id: str, metrics: list[Metric], params: list[Param], tags: list[RunTag]) -> None:
        for start in range(0, max(len(metrics), 1), 800):  # MLflow takes 1,000 things at a time
            first = start == 0
            self.client.log_batch(run_id, metrics[start : start + 800], params if first else [], tags if first else [])

    def _params(self, event: Proposed) -> list[Param]:
        fixed = self._facts.resolved["model"] | self._facts.resolved["training"]
        params = {name: value for name, value in fixed.items() if not isinstance(value, dict)} | event.params
        return [Param(name, str(value)) for name, value in params.items()]


def _points(event: Reported) -> list[Metric]:
    at = int(event.at * 1000)
    values = {f.name: getattr(event.result, f.name) for f in fields(EpochResult) if f.name != "epoch"}
    return [Metric(name, float(value), at, event.result.epoch) for name, value in values.items() if value is not None]


def _row(trial: Trial, metric: str) -> dict[str, Any]:
    return {"trial": trial.number, "outcome": trial.outcome, "epochs": len(trial.results), metric: trial.value(metric), **trial.params}


def _public(uri: str) -> str:
    parts = urlsplit(uri)
    if not parts.password:
        return uri
    return urlunsplit(parts._replace(netloc=f"{parts.username}@{parts.hostname}" + (f":{parts.port}" if parts.port else "")))
