"""One parent run per search and one child run per trial in MLflow, written by the driver, off the scheduler's thread.

The ledger is the spool: it is on the disk before anything of it is sent, and `recorded.jsonl` beside it says how far MLflow has
it, and in which runs. Sending again changes nothing: a run is looked for before it is made anew, and a metric point carries
the time of its event. So MLflow may be away for as long as it likes; a later driver, or `vit-search sync`, sends the rest.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import re
import socket
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import mlflow
from mlflow import MlflowClient
from mlflow.entities import LoggedModelStatus, Metric, Param, RunTag, ViewType
from mlflow.exceptions import MlflowException

from vit_search.config.search_file import SearchSpec
from vit_search.config.strict_json import Count, build, parse
from vit_search.config.trial import EpochResult
from vit_search.errors import CheckpointError, SearchError, TrackingError
from vit_search.files import open_to_write
from vit_search.ledger import search_state, searches
from vit_search.ledger.events import Broke, Ended, Event, Outcome, Proposed, Reported, changed_settings
from vit_search.ledger.file import Ledger
from vit_search.ledger.search_state import SearchState
from vit_search.ledger.searches import COST_FIELDS, Hindsight, SearchFacts, trial_folder
from vit_search.ledger.trials import Progress, Trial, best_trial, ranked
from vit_search.runtime.user import user_name
from vit_search.stopping.rungs import levels
from vit_search.tracking import artifacts, datasets, overview, views
from vit_search.tracking.store import client_for, in_short
from vit_search.tracking.uris import SQLITE, absolute, kept_uri, public, resolve_uri

_log = logging.getLogger(__name__)

STATUS: dict[Outcome, str] = {
    "completed": "FINISHED",
    "stopped": "FINISHED",
    "diverged": "FAILED",
    "failed": "FAILED",
    "interrupted": "KILLED",
}
"""Run status of each outcome. A stopped trial did what it should; its tag `outcome` tells it from a completed one."""

REFUSALS = {"INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "PERMISSION_DENIED", "BAD_REQUEST"}
"""Error codes of MLflow that sending again does not mend."""

RECORDED = "recorded.jsonl"

GATHER_S = 1.0
"""For so long after an event others are waited for, to be sent in one call; until then MLflow's pages are behind."""

LOOK_EVERY_S = 4.0
"""How often the parent run's tag `command` is looked at."""

DESCRIBE_EVERY_S = 10.0
"""How often the parent run's description and the ranks of its best trials are brought up to date."""

ALIVE_EVERY_S = 60.0
"""How often the parent run's tag `alive_at` says that a driver is at work; by it tracking/doctor.py tells a dead one."""

GROWING = ("rung", "epochs", "device_seconds")
"""Metrics of a trial that begin at 0 and have their value at its end."""

RANKED_LIVE, RANKED = 10, 100
"""So many trials of the leaderboard carry their rank as a tag, while a search runs and after its end."""


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
        raise SearchError(f"{search}: no running search of this name in {public(tracking_uri)}; see its page for its state.")
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


def sync(folder: Path, tracking_uri: str | None = None) -> bool:
    """Send MLflow all that it has not got of a search that no driver runs. Doing it again changes nothing.

    Args:
        tracking_uri: in place of the one that the search was launched with; MLflow there gets the whole search.
    Returns: False where MLflow went away meanwhile.
    Raises: SearchError when there is no search, others can change it, or a driver runs it; TrackingError when MLflow does not answer.
    """
    spec, facts = searches.read(folder)
    searches.check_own(folder)
    recorder = Recorder.connect(resolve_uri(tracking_uri, folder, facts), spec.name)
    ledger = Ledger(folder / "ledger.jsonl")  # held meanwhile, so that no driver takes the search up
    try:
        hindsight, trials = searches.read_hindsight(folder), Progress.of(ledger.events, spec.epochs).trials.values()
        open_yet = hindsight is None or not all(trial.over for trial in trials)
        status = "KILLED" if open_yet else "FINISHED" if any(trial.outcome == "completed" for trial in trials) else "FAILED"
        recorder.open(spec, facts, folder, ledger.events, ledger.sync)
        return recorder.close(status, None if open_yet else hindsight)
    finally:
        ledger.close()


class _GivenUpError(Exception):
    """MLflow stayed away to the end."""


_OfTrial = Proposed | Reported | Broke | Ended


class Recorder:
    """Sends a search's events to MLflow from a thread of its own; `wake` only says that there are new ones."""

    def __init__(self, client: MlflowClient, experiment_id: str) -> None:
        self.client, self.experiment_id = client, experiment_id
        self.parent_run = ""
        self._wanted = 0
        """Trials that the search is to run in all."""
        self._obey: Callable[[str], str] | None = None
        self._spec: SearchSpec
        self._facts: SearchFacts
        self._folder: Path
        self._events: list[Event] = []
        self._sync: Callable[[], None] = lambda: None
        self._taken = 0
        """Events that MLflow has."""
        self._steps = 0
        """Calls that it has taken, to see that it is at work."""
        self._progress = Progress(0)
        """As of the events taken."""
        self._folded = 0
        """Events that it knows of."""
        self._runs: dict[int, str] = {}
        self._ready = False
        """Whether what MLflow has is known."""
        self._deleted: set[str] = set()
        """Runs of the search itself that are gone."""
        self._made_anew: set[int] = set()
        """Trials whose run was gone from MLflow; it is made anew once."""
        self._unsure: set[int] = set()
        """Trials whose run was asked for without an answer: it may be there all the same."""
        self._to_reopen: set[int] = set()
        """Trials whose run was ended, or may have been, and that go on."""
        self._ranks: dict[int, int] = {}
        self._best: float | None = None
        self._notes: Any = None
        self._news, self._closing, self._given_up = threading.Event(), threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._work, name="recorder", daemon=True)
        self._looked = self._described = self._alive = 0.0
        self._said_away = False

    @property
    def public_uri(self) -> str:
        """The tracking URI without what a URI may carry in secret."""
        return public(mlflow.get_tracking_uri())

    @property
    def behind(self) -> int:
        """Events that MLflow has not got yet."""
        return len(self._events) - self._taken

    @staticmethod
    def connect(tracking_uri: str | None, experiment: str) -> Recorder:
        """Reach MLflow and find or make the experiment that holds the searches of this name.

        Raises: TrackingError when it cannot be reached, or the artifacts of a SQLite store are not to be found.
        """
        client = client_for(tracking_uri)
        uri = mlflow.get_tracking_uri()
        database = Path(uri.removeprefix(SQLITE)) if uri.startswith(SQLITE) else None
        found = client.get_experiment_by_name(experiment)
        if found is not None and found.lifecycle_stage == "deleted":
            raise TrackingError(f"{experiment}: MLflow's experiment of this name is deleted; restore it there, or rename the search.")
        if found is not None:
            if database and (missing := artifacts.missing(database, found.artifact_location)):
                home = artifacts.place_of(database, experiment)
                raise TrackingError(f"{missing}: the artifacts of {experiment} were in this folder, and it is gone; bring it to {home}.")
            return Recorder(client, found.experiment_id)
        place = artifacts.new_place(database, experiment).as_uri() if database else None
        try:
            kind = {"mlflow.experimentKind": "custom_model_development"}  # the pages for training, not those for chat
            return Recorder(client, client.create_experiment(experiment, artifact_location=place, tags=kind))
        except MlflowException as error:
            raise TrackingError(f"{experiment}: MLflow refuses an experiment of this name ({error.message}).") from None

    def open(
        self,
        spec: SearchSpec,
        facts: SearchFacts,
        folder: Path,
        events: list[Event],
        sync: Callable[[], None] = lambda: None,
        obey: Callable[[str], str] | None = None,
    ) -> None:
        """Find this search's runs or make its parent run, and begin to send what MLflow has not got.

        Args:
            events: of the ledger, which the list grows with.
            sync: has the disk hold them all; called before they are sent, so that a loss of power takes nothing back.
            obey: does what a tag `command` of the parent run says, and gives the answer.
        """
        self._obey, self._progress = obey, Progress(spec.epochs)
        self._spec, self._facts, self._folder, self._events, self._sync = spec, facts, folder, events, sync
        self._space, self._wanted = spec.space, changed_settings(events).get("trials", spec.trials)
        self._news.set()
        self._thread.start()

    def wake(self, event: Event | None = None) -> None:
        """There are new events; never blocks, never fails."""
        self._news.set()

    def close(self, status: str, hindsight: Hindsight | None, *, patience_s: float = 60) -> bool:
        """Send all that is left, then the leaderboard, the report and the best models, and end the parent run with a status.

        Returns: False when MLflow stayed away for `patience_s`; `vit-search sync` sends the rest later.
        """
        self._closing.set()
        self._news.set()
        before = -1
        while self._thread.is_alive() and self._steps > before:  # it may be behind, but at work
            before = self._steps
            self._thread.join(timeout=patience_s)
        name = self._facts.search
        if self._thread.is_alive() or self.behind:
            self._given_up.set()
            _log.warning("MLflow has not got all of it: the rest stays in the ledger; `vit-search sync %s` sends it.", name)
            return False
        said: list[str] = []
        for step in self._last_steps(status, hindsight):
            try:
                self._persist(step, patience_s)
            except (MlflowException, OSError, CheckpointError) as error:
                if in_short(error) not in said:
                    said.append(in_short(error))
                    _log.warning("MLflow did not get all of the summary (%s); `vit-search sync %s` sends it again.", said[-1], name)
                if not _refused(error):  # it is away, and the other steps would wait for it in vain
                    break
        if said:
            with contextlib.suppress(MlflowException, OSError):
                self.client.set_terminated(self.parent_run, status)
        return not said

    def discard(self) -> None:
        """Leave no run of a search that was refused before its first trial."""
        self._closing.set()
        self._given_up.set()
        self._news.set()
        self._thread.join(timeout=30)
        if self.parent_run:
            with contextlib.suppress(MlflowException, OSError):  # it is away: `doctor` finds the run
                self.client.delete_run(self.parent_run)

    def _persist(self, step: Callable[[], object], patience_s: float) -> None:
        """Take a step that may be taken again, until MLflow answers.

        Raises: the last error when patience ends, or at once where trying again does not mend it.
        """
        end = time.monotonic() + patience_s
        while True:
            try:
                step()
                return
            except (MlflowException, OSError) as error:
                if time.monotonic() > end or _refused(error):
                    raise
                time.sleep(1)

    # What this search has in MLflow already

    def _take_up(self) -> None:
        """Find the search's runs or make its parent run, and remember what MLflow has."""
        noted, runs = self._read_notes()
        parent = self._find_parent(noted)
        if parent is None:
            self._deleted |= self._deleted_parents()  # also those that were noted in the project of which this one is a copy
            if self._deleted:
                _log.warning("MLflow has no run of %s any more; it is made anew, and all is sent again.", self._facts.search)
            self._make_parent()
        else:
            self.parent_run = parent.info.run_id
            self.client.update_run(self.parent_run, status="RUNNING")
            self.client.log_batch(self.parent_run, tags=[RunTag("search_folder", str(self._folder.resolve())), *_alive()])
        for deleted in self._deleted:  # its trials' runs are still there, and go on below the new one
            for run in self._find(f"tags.`mlflow.parentRunId` = '{deleted}'"):
                self.client.set_tag(run.info.run_id, "mlflow.parentRunId", self.parent_run)
        if self.parent_run != noted:
            self._taken = 0
            # a driver that got no further than its run, or MLflow's lost answer, may have left it without them
            self.client.log_text(self.parent_run, self._facts.text, "search.yaml")
            self.client.log_dict(self.parent_run, self._facts.resolved, "resolved.json")
            self.client.log_dict(self.parent_run, self._facts.environment, "environment.json")
            self.client.log_text(self.parent_run, self._facts.packages, "requirements.txt")
        self._runs = dict(runs)
        self._find_runs()
        had = self._events[: self._taken]
        for event in had:
            self._fold(event)
            if isinstance(event, Ended):
                self._improved(event)
        self._to_reopen = {number for number, trial in self._progress.trials.items() if not trial.over}
        with contextlib.suppress(OSError):  # of a full disk: what is not noted is sent again
            self._notes = open_to_write(self._folder / RECORDED)
        self._note(store=self.public_uri, experiment=self.experiment_id, parent=self.parent_run)
        for number, run_id in self._runs.items():
            if self.parent_run != noted or runs.get(number) != run_id:
                self._note(trial=number, run=run_id)
        self._ready = True

    def _read_notes(self) -> tuple[str, dict[int, str]]:
        """The parent run and the trials' runs that earlier drivers have noted of this store; empty where they have noted nothing."""
        parent, taken = "", 0
        runs: dict[int, str] = {}
        for note in _notes(self._folder):
            if "parent" in note:
                here = (absolute(note.get("store", "")), note.get("experiment")) == (self.public_uri, self.experiment_id)
                if not here or note["parent"] != parent:
                    parent, taken, runs = note["parent"] if here else "", 0, {}
            elif {"trial", "run"} <= note.keys():
                runs[note["trial"]] = note["run"]
            else:
                taken = note.get("taken", taken)
        self._taken = taken if parent and taken <= len(self._events) else 0
        return parent, runs

    def _find_parent(self, noted: str) -> Any:
        """This search's own run; None where MLflow has none, or none but that of a search of which this one is a copy."""
        if noted and not self._is_there(noted):
            self._deleted.add(noted)
        elif noted:
            found = [self.client.get_run(noted)]
        if not noted or noted in self._deleted:
            found = self._find(f"tags.search_id = '{self._facts.search_id}'")
        originals = {run.info.run_id: self._original(run.data.tags) for run in found}
        own = [run for run in found if originals[run.info.run_id] is None]
        if found and not own:
            self._part_from(next(folder for folder in originals.values() if folder is not None))
        return own[-1] if own else None

    def _deleted_parents(self) -> set[str]:
        """Runs of this search itself that somebody has deleted in MLflow."""
        found = self._find(f"tags.search_id = '{self._facts.search_id}'", ViewType.DELETED_ONLY)
        return {run.info.run_id for run in found if self._original(run.data.tags) is None}

    def _original(self, tags: dict[str, str]) -> Path | None:
        """The folder of the search whose run has these tags, where this search is a copy of it and both write here; else None."""
        folder = Path(tags.get("search_folder") or self._folder)
        try:
            if folder.samefile(self._folder):
                return None
            theirs = searches.read_facts(folder)
        except (OSError, SearchError):  # it was moved here
            return None
        stores = {absolute(note["store"]) for note in _notes(folder) if "store" in note} | {kept_uri(folder, theirs)}
        return folder if theirs.search_id == self._facts.search_id and self.public_uri in stores else None

    def _part_from(self, original: Path) -> None:
        """Give a copied search runs of its own: two that wrote into the same would double each point."""
        name = self._folder.resolve().name
        _log.warning("%s is a copy of %s, whose runs in MLflow it leaves alone; it gets runs of its own.", self._folder, original)
        self._facts = replace(
            self._facts, search=name if self._facts.search == original.name else self._facts.search, search_id=uuid.uuid4().hex
        )
        with contextlib.suppress(OSError):  # of a full disk: it is parted from its original again the next time
            (self._folder / RECORDED).unlink(missing_ok=True)
            searches.write_facts(self._folder, self._facts)

    def _is_there(self, run: str) -> bool:
        try:
            return bool(self.client.get_run(run).info.lifecycle_stage == "active")
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return False
            raise

    def _find_runs(self) -> None:
        """The trials' runs, those that are noted first, and the ranks that they carry; a run that is gone is forgotten."""
        found: dict[int, str] = {}
        for run in self._find(f"tags.`mlflow.parentRunId` = '{self.parent_run}'"):
            number = _trial_of(run)
            if number is not None and (number not in found or self._runs.get(number) == run.info.run_id):
                found[number] = run.info.run_id
                if "rank" in run.data.tags:
                    self._ranks[number] = int(run.data.tags["rank"])
        self._runs = found
        self._ranks = {number: rank for number, rank in self._ranks.items() if number in found}

    def _make_parent(self) -> None:
        facts = self._facts
        tags = {
            "search": facts.search,
            "search_id": facts.search_id,
            "search_folder": str(self._folder.resolve()),
            "metric": f"{facts.mode} {facts.metric}",
            **({"promotes": facts.promotes} if facts.promotes else {}),
            **self._common_tags(),
            **{tag.key: tag.value for tag in _alive()},
        }
        self.parent_run = self.client.create_run(self.experiment_id, run_name=facts.search, tags=tags).info.run_id

    def _common_tags(self) -> dict[str, str]:
        """Those that the parent run and its children share, MLflow's own among them."""
        facts = self._facts
        tags = {
            "data_hash": facts.data_hash,
            "space_hash": facts.space_hash,
            "images": facts.images[:500],
            "code_version": facts.code_version,
            "mlflow.user": user_name(),
            "mlflow.source.name": "vit-search promote" if facts.promotes else "vit-search run",
            "mlflow.source.type": "LOCAL",
            "mlflow.source.git.commit": facts.git_commit,
        }
        return {name: value for name, value in tags.items() if value}

    def _find(self, condition: str, view: int = ViewType.ACTIVE_ONLY) -> list[Any]:
        found: list[Any] = []
        token = None
        while True:
            page = self.client.search_runs(
                [self.experiment_id], condition, view, max_results=1000, order_by=["attributes.start_time"], page_token=token
            )
            found.extend(page)
            token = page.token
            if not token:
                return found

    def _note(self, **note: Any) -> None:
        if self._notes is not None:
            with contextlib.suppress(OSError):
                self._notes.write(json.dumps(note) + "\n")
                self._notes.flush()

    # Sending

    def _work(self) -> None:
        try:
            self._insist(self._take_up)
            if self._ready:  # else MLflow refuses it for good, which has been said
                self._insist(self._write_views)
                self._insist(partial(self._log_inputs, self.parent_run, datasets.splits(self._facts)))
                self._drain()
        except _GivenUpError:
            pass
        except Exception:  # ours alone; the search goes on, and what is missing in MLflow is said at its end
            _log.exception("MLflow gets no more of this search.")

    def _drain(self) -> None:
        while True:
            for number in self._without_run():
                self._insist(self._make_anew, number)
            self._news.wait(LOOK_EVERY_S)
            if self._news.is_set():
                self._closing.wait(GATHER_S)
            self._news.clear()
            closing, ahead = self._closing.is_set(), len(self._events)
            if ahead > self._taken:
                self._sync()
                self._send_all(self._events[self._taken : ahead])
                self._taken = ahead
                self._note(taken=ahead)
            if closing and self._taken == len(self._events):
                return
            try:
                self._look()
            except Exception as error:  # the next look may find it
                if not _refused(error):  # as where the search's own run was deleted, which the end says
                    self._say_away(error)

    def _look(self) -> None:
        """Between events: obey a command that somebody has written as a tag on the parent run, and show how the search stands."""
        now = time.monotonic()
        if now - self._looked >= LOOK_EVERY_S:
            self._looked = now
            text = self.client.get_run(self.parent_run).data.tags.get("command")
            if text and self._obey is not None:
                with _not_there():
                    self.client.delete_tag(self.parent_run, "command")
                self.client.set_tag(self.parent_run, "command_answer", f"{text}: {self._obey(text)}")
        if now - self._described >= DESCRIBE_EVERY_S:
            self._described = now
            self._describe(RANKED_LIVE, driven=True)
        if now - self._alive >= ALIVE_EVERY_S:
            self._alive = now
            self.client.log_batch(self.parent_run, tags=_alive())

    def _fold(self, event: Event) -> None:
        self._progress.apply(event)
        self._folded += 1
        self._wanted = int(changed_settings([event]).get("trials", self._wanted))

    def _send_all(self, events: list[Event]) -> None:
        """All that is new of a trial goes in as few calls as MLflow allows: a search may outrun it by thousands."""
        of_trial: dict[int, list[_OfTrial]] = {}
        improved: list[Metric] = []
        for event in events:
            self._fold(event)
            if isinstance(event, (Proposed, Reported, Broke, Ended)):  # the others are of no trial, and have no run
                of_trial.setdefault(event.trial, []).append(event)
            if isinstance(event, Ended):
                improved += self._improved(event)
        for trial, news in of_trial.items():
            self._insist(self._send, trial, news)
        if improved:
            self._insist(self._log, self.parent_run, improved, [], [])

    def _improved(self, event: Ended) -> list[Metric]:
        """A point of the parent's curve of the best full-length trial so far, over the number of trials that are over."""
        metric, sign = self._spec.metric, 1 if self._spec.mode == "max" else -1
        value = self._progress.trials[event.trial].value(metric) if event.outcome == "completed" else None
        if value is None or (self._best is not None and sign * value <= sign * self._best):
            return []
        self._best = value
        return [Metric(f"best/{metric}", value, int(event.at * 1000), sum(trial.over for trial in self._progress.trials.values()))]

    def _insist(self, step: Callable[..., None], *args: Any) -> None:
        """Try until MLflow answers; a search goes on meanwhile. What MLflow refuses for good is said and left out."""
        pause = 1.0
        while True:
            try:
                step(*args)
                self._steps += 1
                return
            except Exception as error:
                if _refused(error):
                    of = f" of trial {args[0]}" if args and isinstance(args[0], int) else ""
                    _log.warning("MLflow refuses a record%s (%s).", of, in_short(error))
                    return
                self._say_away(error)
                if self._given_up.wait(pause):
                    raise _GivenUpError from None
                pause = min(pause * 2, 5)

    def _say_away(self, error: Exception) -> None:
        """Once, in one line."""
        if not self._said_away:
            self._said_away = True
            _log.warning("MLflow does not answer (%s); the search goes on and sends it later.", in_short(error))

    def _send(self, number: int, news: list[_OfTrial]) -> None:
        """Bring a trial's run up to date, or make it anew where it was deleted. Doing it again changes nothing."""
        try:
            self._send_news(number, news)
        except MlflowException as error:
            if not _refused(error) or number not in self._runs or self._is_there(self._runs[number]):
                raise
            self._forget(number)
            self._make_anew(number)

    def _forget(self, number: int) -> None:
        """A trial's run is gone from MLflow."""
        self._runs.pop(number, None)
        self._ranks.pop(number, None)

    def _without_run(self) -> list[int]:
        """Trials whose run is gone, and was not yet made anew: where MLflow refuses it once, it is not asked again and again."""
        return [number for number in self._progress.trials if number not in self._runs and number not in self._made_anew]

    def _make_anew(self, number: int) -> None:
        """Give a trial the run that somebody has deleted, with all that it held."""
        if number not in self._made_anew:
            _log.warning("MLflow has no run of trial %d any more; it is made anew.", number)
        self._made_anew.add(number)
        told = [e for e in self._events[: self._folded] if isinstance(e, _OfTrial) and e.trial == number]
        self._send_news(number, told)

    def _send_news(self, number: int, news: list[_OfTrial]) -> None:
        trial, last = self._progress.trials[number], news[-1]
        fresh = self._make_run(trial)
        run_id = self._runs[number]
        sent_again = isinstance(news[0], Proposed) and not fresh
        if (number in self._to_reopen or sent_again) and not isinstance(last, Ended):
            self.client.update_run(run_id, status="RUNNING")
            self._to_reopen.discard(number)
        reports = [event for event in news if isinstance(event, Reported)]
        metrics = self._best_points(trial, reports) + [point for event in reports for point in _points(event)]
        if isinstance(last, Ended) or any(report.result.epoch == 1 for report in reports):  # at its end again: once is enough for MLflow
            metrics += self._first_points(trial)
        tags = [RunTag("outcome", trial.outcome)]
        if trial.breakdowns:
            told = "\n".join(f"{'once' if times == 1 else f'{times} times'}: {why}" for why, times in Counter(trial.breakdowns).items())
            tags += [RunTag("breakdowns", str(len(trial.breakdowns))), RunTag("breakdown_reasons", told[:5000])]
        if isinstance(last, Ended):
            metrics += self._end_points(trial, last)
            tags.append(RunTag("rung", str(self._rung(trial))))
            if last.reason:
                tags.append(RunTag("reason", last.reason[:5000]))
        params: list[Param] = []
        if isinstance(news[0], Proposed):
            self._log_inputs(run_id, datasets.splits_of_a_trial(self._facts))
            params = self._params(trial)
        try:
            self._log(run_id, metrics, params, tags)
        except MlflowException as error:
            if not _refused(error) or not self._is_there(run_id):
                raise
            _log.warning("MLflow refuses a record of trial %d (%s); the rest of it is sent.", number, in_short(error))
            for some_metrics, some_params, some_tags in ((metrics, [], []), ([], params, []), ([], [], tags)):
                with contextlib.suppress(MlflowException):
                    self._log(run_id, some_metrics, some_params, some_tags)
        if isinstance(last, Ended):
            self.client.set_terminated(run_id, STATUS[last.outcome], int(last.at * 1000))
            if last.outcome == "interrupted":
                self._to_reopen.add(number)

    def _make_run(self, trial: Trial) -> bool:
        """Whether the trial's run had to be made. One that was asked for without an answer is looked for first."""
        number = trial.number
        if number in self._runs:
            return False
        if number in self._unsure:
            condition = f"tags.`mlflow.parentRunId` = '{self.parent_run}' and tags.trial = '{number}'"
            for run in self._find(condition)[:1]:
                self._runs[number] = run.info.run_id
        fresh = number not in self._runs
        if fresh:
            self._unsure.add(number)
            tags = {
                "mlflow.parentRunId": self.parent_run,
                "search": self._facts.search,
                "trial": str(number),  # the REST client takes text alone
                "outcome": "running",
                **self._common_tags(),
            }
            run = self.client.create_run(self.experiment_id, int(trial.began * 1000), run_name=f"trial {number}", tags=tags)
            self._runs[number] = run.info.run_id
        self._note(trial=number, run=self._runs[number])
        return fresh

    def _log(self, run_id: str, metrics: list[Metric], params: list[Param], tags: list[RunTag]) -> None:
        for start in range(0, max(len(metrics), 1), 800):  # MLflow takes 1,000 things at a time
            first = start == 0
            self.client.log_batch(run_id, metrics[start : start + 800], params if first else [], tags if first else [])

    def _params(self, trial: Trial) -> list[Param]:
        fixed = self._facts.resolved["model"] | self._facts.resolved["training"]
        params = {name: value for name, value in fixed.items() if not isinstance(value, dict)} | self._space.trained(trial.params)
        return [Param(name, str(value)) for name, value in params.items()]

    def _rung(self, trial: Trial) -> int:
        """The last rung that a trial has come to, in epochs; 0 before the first."""
        how = self._spec.stopping
        rungs = levels(grace_epochs=how.grace_epochs, reduction_factor=how.reduction_factor, epochs=self._spec.epochs)
        return max((rung for rung in rungs if rung <= len(trial.results)), default=0)

    # A trial's figures. MLflow draws a metric whose last step is 0 as a bar and any other as a curve, so that what grows has
    # points at both ends of the trial, and what is known from the start stands at step 0. It lists metrics, and compares trials
    # by the first of them, in the order in which they come.

    def _first_points(self, trial: Trial) -> list[Metric]:
        cost, at = self._space.cost(trial.params), int(trial.began * 1000)
        constants = {name: float(getattr(cost, COST_FIELDS[name])) for name in ("params", "train_flops")}
        return [Metric(name, value, at, 0) for name, value in (constants | dict.fromkeys(GROWING, 0.0)).items()]

    def _best_points(self, trial: Trial, reports: list[Reported]) -> list[Metric]:
        """Each reported epoch at which the trial was better than ever before."""
        metric, sign = self._spec.metric, 1 if self._spec.mode == "max" else -1
        at = {report.result.epoch: int(report.at * 1000) for report in reports}
        best_yet, points = -math.inf, []
        for result in trial.results:
            value = result.value(metric)
            if value is not None and math.isfinite(value) and sign * value > best_yet:
                best_yet = sign * value
                if result.epoch in at:
                    points.append(Metric(f"best/{metric}", float(value), at[result.epoch], result.epoch))
        return points

    def _end_points(self, trial: Trial, event: Ended) -> list[Metric]:
        """What is to be known of a whole trial, to sort by in MLflow's pages."""
        spec, epochs = self._spec, len(trial.results)
        grown = (self._rung(trial), epochs, trial.device_seconds(spec.resources.devices))
        values: dict[str, float | None] = {f"best/{spec.metric}": trial.best_value(spec.metric, spec.mode)}
        values |= dict(zip(GROWING, map(float, grown), strict=True))
        return [Metric(name, value, int(event.at * 1000), epochs) for name, value in values.items() if value is not None]

    def _log_inputs(self, run_id: str, splits: tuple[str, ...]) -> None:
        """The data set, split by split; MLflow leaves out what the run has already. A refusal costs no other record."""
        try:
            self.client.log_inputs(run_id, datasets.inputs(self._facts, splits))
        except MlflowException as error:
            if error.error_code not in REFUSALS:
                raise
            _log.warning("MLflow refuses the data set of run %s (%s).", run_id, in_short(error))

    def _write_views(self) -> None:
        """Have the experiment's page show the newest search's metric, outcome and searched parameters."""
        spec, experiment = self._spec, self.client.get_experiment(self.experiment_id)
        wanted = views.tags(metric=spec.metric, mode=spec.mode, searched=self._space.searched, created_at=experiment.creation_time or 0)
        for name, value in wanted.items():
            if experiment.tags.get(name) != value and not self._facts.promotes:  # a promotion searches nothing
                self.client.set_experiment_tag(self.experiment_id, name, value)

    # How the search stands, and its end

    def _describe(self, places: int, *, driven: bool) -> None:
        """The parent's description, and the first trials' ranks as tags."""
        state = search_state.of_events(self._events[:], self._progress.trials.values(), self._wanted, driven=driven)
        trials = search_state.as_they_stand(self._progress.trials, self._events[:], state)
        ranking = ranked(trials.values(), self._spec.metric, self._spec.mode)
        text = overview.described(
            self._spec,
            self._facts,
            ranking,
            self._progress.spent,
            wanted=self._wanted,
            state=f"{state.word} ({state.reason})" if state.reason else state.word,
            experiment_id=self.experiment_id,
            runs=self._runs,
        )
        self.client.log_batch(self.parent_run, tags=[RunTag("mlflow.note.content", text), RunTag("state", state.word)])
        sound = [t for t in ranking if t.value(self._spec.metric) is not None and t.outcome not in ("diverged", "failed")]
        ranks = {trial.number: rank for rank, trial in enumerate(sound[:places], 1)}
        for number in self._ranks.keys() - ranks.keys():
            with self._deletable(number), _not_there():
                self.client.delete_tag(self._runs[number], "rank")
            self._ranks.pop(number, None)
        for number, rank in ranks.items():
            if number in self._runs and self._ranks.get(number) != rank:
                with self._deletable(number):
                    self.client.set_tag(self._runs[number], "rank", str(rank))
                    self._ranks[number] = rank

    @contextlib.contextmanager
    def _deletable(self, number: int) -> Iterator[None]:
        """A trial's run may have been deleted meanwhile; it is then forgotten, to be made anew."""
        try:
            yield
        except MlflowException as error:
            if not _refused(error) or self._is_there(self._runs[number]):
                raise
            self._forget(number)

    def _drop_doubles(self) -> None:
        """Delete the runs that MLflow made without our hearing of it; each has a twin."""
        if not self._unsure - self._runs.keys() and not self._said_away:
            return
        for run in self._find(f"tags.`mlflow.parentRunId` = '{self.parent_run}'"):
            number = _trial_of(run)
            if number is not None and self._runs.get(number) != run.info.run_id:
                self.client.delete_run(run.info.run_id)

    def _last_steps(self, status: str, hindsight: Hindsight | None) -> Iterator[Callable[[], object]]:
        """What the end of a search adds, piece by piece: ranks, leaderboard, counts, ledger, report, the best models, its status."""
        client, parent, spec = self.client, self.parent_run, self._spec
        yield self._find_runs
        for number in self._without_run():
            yield partial(self._make_anew, number)
        trials = search_state.as_they_stand(self._progress.trials, (), SearchState("interrupted"))
        for number, trial in trials.items():
            if trial is not self._progress.trials[number]:  # left without an end by a driver that has died
                yield partial(self._end_left_trial, trial)
        ranking = ranked(trials.values(), spec.metric, spec.mode)
        yield self._drop_doubles
        yield partial(self._describe, RANKED, driven=False)
        # not MLflow's log_table, which appends to an older one
        yield partial(client.log_dict, parent, overview.leaderboard(spec, ranking, self._runs), "leaderboard.json")
        tags = {"mlflow.loggedArtifacts": '[{"path": "leaderboard.json", "type": "table"}]'}
        winner = best_trial(ranking, spec.metric, spec.mode)
        if winner is not None:
            tags["best_trial"] = str(winner.number)
        now = int(time.time() * 1000)
        figures = [Metric(name, float(value), now, 0) for name, value in self._figures(ranking, hindsight).items()]
        if self._best is not None:  # where the curve of the best trial ends
            last = max(int(event.at * 1000) for event in self._events if isinstance(event, Ended))
            figures.append(Metric(f"best/{spec.metric}", self._best, last, sum(trial.over for trial in ranking)))
        yield partial(client.log_batch, parent, metrics=figures, tags=[RunTag(name, value) for name, value in tags.items()])
        if hindsight is not None and hindsight.plan is not None:
            yield partial(client.log_dict, parent, hindsight.plan, "plan.json")
        for path in (self._folder / "ledger.jsonl", *(() if self._facts.promotes else self._pages())):
            yield partial(client.log_artifact, parent, str(path))
        if status == "FINISHED" and not self._facts.promotes:  # promotion logs the one that it has chosen
            for trial in [trial for trial in ranking if trial.outcome == "completed"][: spec.keep_checkpoints]:
                yield partial(self._log_model, trial)
        yield partial(client.set_terminated, parent, status)

    def _end_left_trial(self, trial: Trial) -> None:
        """A trial without an end in the ledger, whose run a resume will open again."""
        if trial.number in self._runs:
            run = self._runs[trial.number]
            self.client.log_batch(run, tags=[RunTag("outcome", trial.outcome), RunTag("reason", trial.reason)])
            self.client.set_terminated(run, STATUS["interrupted"])

    def _figures(self, ranking: list[Trial], hindsight: Hindsight | None) -> dict[str, float]:
        outcomes, spent = Counter(trial.outcome for trial in ranking), self._progress.spent
        audits = {"audits_to_be_stopped": hindsight.doomed, "audits_wrongly": hindsight.wrongly} if hindsight else {}
        return {
            "trials": len(ranking),
            **{name: outcomes[name] for name in STATUS if name != "interrupted"},
            "breakdowns": sum(len(trial.breakdowns) for trial in ranking),
            "epochs_trained": spent.epochs,
            "trial_hours": spent.trial_seconds / 3600,
            "trial_hours_stopped": spent.stopped_seconds / 3600,
            "trial_hours_saved": spent.saved_seconds / 3600,
            "wall_hours": spent.wall_seconds / 3600,
            **audits,
        }

    def _pages(self) -> tuple[Path, ...]:
        """The report, written into the search's folder; a picture that cannot be drawn must not cost the rest of the record."""
        try:
            from vit_search.report import report  # plotly and optuna are imported here, at the end, and not by every command

            return report.write(self._folder, driven=False)
        except Exception as error:
            _log.warning("the report could not be made (%s: %s).", type(error).__name__, in_short(error))
            return ()

    def _log_model(self, trial: Trial) -> None:
        """A trial's model, unless an earlier end of this search has logged it, or its checkpoint is gone."""
        from vit_search.tracking.model_package import link_to_parent, log_model  # torch is imported here
        from vit_search.vit import checkpoint

        run, place = self._runs.get(trial.number), trial_folder(self._folder, trial.number) / "checkpoint"
        if run is None:
            return
        known = self.client.search_logged_models([self.experiment_id], filter_string=f"source_run_id = '{run}'")
        model_id = next((model.model_id for model in known if model.status == LoggedModelStatus.READY), None)
        if model_id is None and checkpoint.exists(place):
            name = f"{self._facts.search}-trial-{trial.number}".replace(".", "-")
            step = len(trial.results)
            uri = log_model(place, run_id=run, name=name, step=step, end_status=STATUS["completed"], pt2=self._spec.log_pt2)
            model_id = uri.rpartition("/")[2]
            tags = {"search": self._facts.search, "trial": str(trial.number), self._spec.metric: str(trial.value(self._spec.metric))}
            self.client.set_logged_model_tags(model_id, tags)
        if model_id is not None:
            link_to_parent(self.client, run, model_id)


def _trial_of(run: Any) -> int | None:
    """The number of the trial that a run belongs to; None for one that somebody else has put below the search's run."""
    number = run.data.tags.get("trial", "")
    return int(number) if number.isdecimal() else None


def _refused(error: Exception) -> bool:
    """Whether MLflow refuses it for good."""
    return isinstance(error, MlflowException) and error.error_code in REFUSALS


def _alive() -> list[RunTag]:
    """By these tags tracking/doctor.py tells a driver at work from a dead one."""
    return [RunTag("alive_at", str(int(time.time()))), RunTag("driver_host", socket.gethostname())]


@dataclass(frozen=True)
class _Noted:
    """A line of RECORDED: the parent's run and where it is, or a trial's run, or how many events MLflow has taken."""

    store: str = ""
    experiment: str = ""
    parent: str = ""
    trial: Count = 0
    run: str = ""
    taken: Count = 0


def _notes(folder: Path) -> list[dict[str, Any]]:
    """What drivers have noted of MLflow in a search's folder, in order; a line that a crash has cut, or somebody forged, is left out."""
    notes: list[dict[str, Any]] = []
    with contextlib.suppress(OSError, UnicodeDecodeError):
        for line in (folder / RECORDED).read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError):
                note = parse(line)
                build(_Noted, note)
                notes.append(note)
    return notes


@contextlib.contextmanager
def _not_there() -> Iterator[None]:
    """What is to be removed may be gone: an earlier call did it whose answer was lost."""
    try:
        yield
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise


def _points(event: Reported) -> list[Metric]:
    at = int(event.at * 1000)
    values = {f.name: getattr(event.result, f.name) for f in fields(EpochResult) if f.name not in ("epoch", "scores")}
    values |= event.result.scores | event.system
    return [Metric(name, float(value), at, event.result.epoch) for name, value in values.items() if value is not None]
