"""Finds runs that MLflow shows as running although nothing works on them any more, and closes them on request (`vit-search doctor`)."""

from __future__ import annotations

import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import RunTag, ViewType

from vit_search.errors import SearchError
from vit_search.ledger import searches
from vit_search.ledger.file import is_held

HERE = socket.gethostname()

SILENT_S = 600.0
"""A driver without a sign of life for this long counts as dead. It gives one each minute."""


@dataclass(frozen=True)
class Zombie:
    """A run that nothing will end."""

    run_id: str
    name: str
    experiment: str
    reason: str
    """How we know that it is abandoned."""


def zombies(client: MlflowClient, *, stranger_hours: float = 24.0, now: float | None = None) -> list[Zombie]:
    """Running runs of dead searches, and those of other programs that have been silent for too long.

    Args:
        stranger_hours: how long a run of another program may go without a new metric.
        now: seconds since 1970.
    """
    now = time.time() if now is None else now
    names = {e.experiment_id: e.name for e in _all(client.search_experiments, view_type=ViewType.ACTIVE_ONLY)}
    running = _all(client.search_runs, list(names), "attributes.status = 'RUNNING'") if names else []
    parents = {run.info.run_id: run for run in running if "search_id" in run.data.tags}
    dead = {run_id: reason for run_id, run in parents.items() if (reason := _dead(run.data.tags, run.info.start_time, now))}
    abandoned = []
    for run in running:
        tags, parent = run.data.tags, run.data.tags.get("mlflow.parentRunId", "")
        if run.info.run_id in parents:
            reason = dead.get(run.info.run_id, "")
        elif "search" in tags and "trial" in tags:
            reason = dead.get(parent, "" if parent in parents else "its search has ended")
        else:
            silent = (now - _last_sign(client, run)) / 3600
            reason = f"not of vit_search, and silent for {silent:.0f} h" if silent > stranger_hours else ""
        if reason:
            abandoned.append(Zombie(run.info.run_id, run.info.run_name or "", names[run.info.experiment_id], reason))
    return abandoned


def close(client: MlflowClient, abandoned: list[Zombie]) -> None:
    """End the runs as KILLED. If a search is resumed later, it opens its runs again."""
    for zombie in abandoned:
        present = client.get_run(zombie.run_id).data.tags
        outcomes = [RunTag(name, "interrupted") for name in ("state", "outcome") if name in present]  # tags of a search and of a trial
        client.log_batch(zombie.run_id, tags=[RunTag("closed_by", "vit-search doctor"), RunTag("closed_because", zombie.reason), *outcomes])
        client.set_terminated(zombie.run_id, "KILLED")


def _dead(tags: dict[str, str], started_ms: int, now: float) -> str:
    """Why a search has no driver any more; empty if it has one, or if that is not known yet."""
    driven = _driven(tags)
    if driven is not None:
        return "" if driven else f"nobody runs {tags.get('search_folder')}"
    silent = now - float(tags.get("alive_at", started_ms / 1000))
    return (
        f"its driver on {tags.get('driver_host', 'another machine')} has been silent for {silent / 60:.0f} min" if silent > SILENT_S else ""
    )


def _driven(tags: dict[str, str]) -> bool | None:
    """Whether a driver holds the search's ledger; None if the ledger is not on this machine.

    A folder of this name may belong to another machine or another search. The search's own folder has its id.
    """
    folder = Path(tags.get("search_folder", ""))
    try:
        if searches.read_facts(folder).search_id != tags["search_id"]:
            return None
        if is_held(folder / "ledger.jsonl"):
            return True
        return False if tags.get("driver_host", HERE) == HERE else None
    except (OSError, SearchError):
        return None


def _last_sign(client: MlflowClient, run: Any) -> float:
    """When a run began or last got a metric, in seconds since 1970."""
    times = [run.info.start_time]
    for name in run.data.metrics:
        times += [point.timestamp for point in client.get_metric_history(run.info.run_id, name)[-1:]]
    return float(max(times) / 1000)


def _all(search: Any, *args: Any, **options: Any) -> list[Any]:
    items: list[Any] = []
    token = None
    while True:
        page = search(*args, page_token=token, **options)
        items.extend(page)
        token = page.token
        if not token:
            return items
