"""The runs of one search in MLflow: its parent run, and one run for each trial. Finds them, or makes them again if they were deleted."""

from __future__ import annotations

import contextlib
import json
import logging
import socket
import time
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import RunTag, ViewType
from mlflow.exceptions import MlflowException

from vit_search.config.search_file import SearchSpec
from vit_search.config.tuning import tuning_tags
from vit_search.errors import SearchError
from vit_search.files import open_to_write
from vit_search.ledger import searches
from vit_search.ledger.events import Outcome
from vit_search.ledger.searches import SearchFacts
from vit_search.ledger.trials import Trial
from vit_search.runtime.user import user_name
from vit_search.tracking.mlflow_client import public_uri
from vit_search.tracking.mlflow_errors import is_refused
from vit_search.tracking.recorded_file import RECORDED, read_notes
from vit_search.tracking.uris import absolute, kept_uri

_log = logging.getLogger(__name__)

STATUS: dict[Outcome, str] = {
    "completed": "FINISHED",
    "stopped": "FINISHED",
    "diverged": "FAILED",
    "failed": "FAILED",
    "interrupted": "KILLED",
}
"""Run status for each outcome. A stopped trial did its work; its tag `outcome` distinguishes it from a completed one."""


class SearchRuns:
    """Finds and makes the runs of one search, and stores their ids in RECORDED."""

    def __init__(self, client: MlflowClient, experiment_id: str, spec: SearchSpec, facts: SearchFacts, folder: Path) -> None:
        self.client, self.experiment_id = client, experiment_id
        self.spec, self.facts, self.folder = spec, facts, folder
        self.parent_run = ""
        self.by_trial: dict[int, str] = {}
        """Ids of the trials' runs, by trial number."""
        self.ranks: dict[int, int] = {}
        """Ranks that the trials' runs have as a tag."""
        self.to_reopen: set[int] = set()
        """Trials that continue although their run was ended, or may have been."""
        self._deleted: set[str] = set()
        """Deleted parent runs of this search."""
        self._unsure: set[int] = set()
        """Trials whose run was requested, but the reply was lost. The run may exist."""
        self._notes: Any = None

    def find_or_make(self, written: int) -> int:
        """Find the search's runs, or make its parent run.

        Args:
            written: number of events in the ledger.
        Returns: how many of them MLflow has.
        """
        noted, runs, taken = self._read_notes(written)
        parent = self._find_parent(noted)
        if parent is None:
            self._deleted |= self._deleted_parents()  # also those noted in the project from which this one was copied
            if self._deleted:
                _log.warning("MLflow has no run of %s any more; it is created again, with all records.", self.facts.search)
            self._make_parent()
        else:
            self.parent_run = parent.info.run_id
            self.client.update_run(self.parent_run, status="RUNNING")
            self.client.log_batch(self.parent_run, tags=[RunTag("search_folder", str(self.folder.resolve())), *alive_tags()])
        for deleted in self._deleted:  # the trials' runs still exist, and continue below the new parent run
            for run in self.find(f"tags.`mlflow.parentRunId` = '{deleted}'"):
                self.client.set_tag(run.info.run_id, "mlflow.parentRunId", self.parent_run)
        if self.parent_run != noted:
            taken = 0
            # the files may be missing if a driver ended early, or if MLflow's reply was lost
            self.client.log_text(self.parent_run, self.facts.text, "search.yaml")
            self.client.log_dict(self.parent_run, self.facts.resolved, "resolved.json")
            self.client.log_dict(self.parent_run, self.facts.environment, "environment.json")
            self.client.log_text(self.parent_run, self.facts.packages, "requirements.txt")
        self.by_trial = dict(runs)
        self.find_trial_runs()
        with contextlib.suppress(OSError):  # the disk is full: what is not noted will be sent again
            self._notes = open_to_write(self.folder / RECORDED)
        self.note(store=public_uri(), experiment=self.experiment_id, parent=self.parent_run)
        for number, run_id in self.by_trial.items():
            if self.parent_run != noted or runs.get(number) != run_id:
                self.note(trial=number, run=run_id)
        return taken

    def _read_notes(self, written: int) -> tuple[str, dict[int, str], int]:
        """What earlier drivers noted about this store: the parent run, the trials' runs and the number of events. Empty if nothing."""
        parent, taken = "", 0
        runs: dict[int, str] = {}
        for note in read_notes(self.folder):
            if "parent" in note:
                here = (absolute(note.get("store", "")), note.get("experiment")) == (public_uri(), self.experiment_id)
                if not here or note["parent"] != parent:
                    parent, taken, runs = note["parent"] if here else "", 0, {}
            elif {"trial", "run"} <= note.keys():
                runs[note["trial"]] = note["run"]
            else:
                taken = note.get("taken", taken)
        return parent, runs, taken if parent and taken <= written else 0

    def _find_parent(self, noted: str) -> Any:
        """The parent run of this search. None if MLflow has none, or only that of a search from which this one was copied."""
        if noted and not self.is_there(noted):
            self._deleted.add(noted)
        elif noted:
            candidates = [self.client.get_run(noted)]
        if not noted or noted in self._deleted:
            candidates = self.find(f"tags.search_id = '{self.facts.search_id}'")
        originals = {run.info.run_id: self._original(run.data.tags) for run in candidates}
        ours = [run for run in candidates if originals[run.info.run_id] is None]
        if candidates and not ours:
            self._separate_from(next(folder for folder in originals.values() if folder is not None))
        return ours[-1] if ours else None

    def _deleted_parents(self) -> set[str]:
        """Parent runs of this search that somebody has deleted in MLflow."""
        deleted = self.find(f"tags.search_id = '{self.facts.search_id}'", ViewType.DELETED_ONLY)
        return {run.info.run_id for run in deleted if self._original(run.data.tags) is None}

    def _original(self, tags: dict[str, str]) -> Path | None:
        """The folder of the search to which these tags belong, if this search is its copy and both write to the same MLflow; else None."""
        folder = Path(tags.get("search_folder") or self.folder)
        try:
            if folder.samefile(self.folder):
                return None
            theirs = searches.read_facts(folder)
        except (OSError, SearchError):  # the folder was moved here
            return None
        stores = {absolute(note["store"]) for note in read_notes(folder) if "store" in note} | {kept_uri(folder, theirs)}
        return folder if theirs.search_id == self.facts.search_id and public_uri() in stores else None

    def _separate_from(self, original: Path) -> None:
        """Give a copied search its own runs. If two searches wrote into the same runs, each point would be there twice."""
        name = self.folder.resolve().name
        _log.warning("%s is a copy of %s, whose runs in MLflow it leaves alone; it gets runs of its own.", self.folder, original)
        self.facts = replace(
            self.facts, search=name if self.facts.search == original.name else self.facts.search, search_id=uuid.uuid4().hex
        )
        with contextlib.suppress(OSError):  # the disk is full: the copy is separated again the next time
            (self.folder / RECORDED).unlink(missing_ok=True)
            searches.write_facts(self.folder, self.facts)

    def is_there(self, run: str) -> bool:
        """Whether MLflow has a run, and it is not deleted."""
        try:
            return bool(self.client.get_run(run).info.lifecycle_stage == "active")
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return False
            raise

    def find_trial_runs(self) -> None:
        """Find the trials' runs and their ranks. A run that was noted before is preferred; a run that is gone is forgotten."""
        by_trial: dict[int, str] = {}
        for run in self.find(f"tags.`mlflow.parentRunId` = '{self.parent_run}'"):
            number = trial_of(run)
            if number is not None and (number not in by_trial or self.by_trial.get(number) == run.info.run_id):
                by_trial[number] = run.info.run_id
                if "rank" in run.data.tags:
                    self.ranks[number] = int(run.data.tags["rank"])
        self.by_trial = by_trial
        self.ranks = {number: rank for number, rank in self.ranks.items() if number in by_trial}

    def _make_parent(self) -> None:
        facts = self.facts
        tags = {
            "search": facts.search,
            "search_id": facts.search_id,
            "search_folder": str(self.folder.resolve()),
            "metric": f"{facts.mode} {facts.metric}",
            **({"promotes": facts.promotes} if facts.promotes else {}),
            **searches.tags_of_weights(facts, facts.pretrained),
            **self._common_tags(),
            **{tag.key: tag.value for tag in alive_tags()},
        }
        self.parent_run = self.client.create_run(self.experiment_id, run_name=facts.search, tags=tags).info.run_id

    def _common_tags(self) -> dict[str, str]:
        """Tags that the parent run and the trials' runs share, including MLflow's own."""
        facts = self.facts
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

    def find(self, condition: str, view: int = ViewType.ACTIVE_ONLY) -> list[Any]:
        """All runs of the experiment that meet a condition, oldest first."""
        runs: list[Any] = []
        token = None
        while True:
            page = self.client.search_runs(
                [self.experiment_id], condition, view, max_results=1000, order_by=["attributes.start_time"], page_token=token
            )
            runs.extend(page)
            token = page.token
            if not token:
                return runs

    def note(self, **note: Any) -> None:
        """Add a line to RECORDED."""
        if self._notes is not None:
            with contextlib.suppress(OSError):
                self._notes.write(json.dumps(note) + "\n")
                self._notes.flush()

    def make_trial_run(self, trial: Trial) -> bool:
        """Make the run of a trial unless it exists. Returns whether it was made. If an earlier reply was lost, look for the run first."""
        number = trial.number
        if number in self.by_trial:
            return False
        if number in self._unsure:
            condition = f"tags.`mlflow.parentRunId` = '{self.parent_run}' and tags.trial = '{number}'"
            for run in self.find(condition)[:1]:
                self.by_trial[number] = run.info.run_id
        fresh = number not in self.by_trial
        if fresh:
            self._unsure.add(number)
            values = self.spec.space.complete(trial.params)
            tags = {
                "mlflow.parentRunId": self.parent_run,
                "search": self.facts.search,
                "trial": str(number),  # the REST client accepts only text
                "outcome": "running",
                **searches.tags_of_weights(self.facts, [values["pretrained"]]),
                **tuning_tags(values),
                **self._common_tags(),
            }
            run = self.client.create_run(self.experiment_id, int(trial.began * 1000), run_name=f"trial {number}", tags=tags)
            self.by_trial[number] = run.info.run_id
        self.note(trial=number, run=self.by_trial[number])
        return fresh

    def forget(self, number: int) -> None:
        """Forget a trial's run that MLflow no longer has."""
        self.by_trial.pop(number, None)
        self.ranks.pop(number, None)

    @contextlib.contextmanager
    def forgets_if_deleted(self, number: int) -> Iterator[None]:
        """Inside this block, a trial's run may turn out to be deleted. It is then forgotten, and made again later."""
        try:
            yield
        except MlflowException as error:
            if not is_refused(error) or self.is_there(self.by_trial[number]):
                raise
            self.forget(number)

    def drop_doubles(self, *, doubtful: bool) -> None:
        """Delete runs that MLflow made although its reply was lost. Each of them has a twin."""
        if not self._unsure - self.by_trial.keys() and not doubtful:
            return
        for run in self.find(f"tags.`mlflow.parentRunId` = '{self.parent_run}'"):
            number = trial_of(run)
            if number is not None and self.by_trial.get(number) != run.info.run_id:
                self.client.delete_run(run.info.run_id)


def trial_of(run: Any) -> int | None:
    """The number of a run's trial; None if somebody else has put the run below the search's run."""
    number = run.data.tags.get("trial", "")
    return int(number) if number.isdecimal() else None


def alive_tags() -> list[RunTag]:
    """Tags from which tracking/doctor.py sees whether a driver is alive."""
    return [RunTag("alive_at", str(int(time.time()))), RunTag("driver_host", socket.gethostname())]
