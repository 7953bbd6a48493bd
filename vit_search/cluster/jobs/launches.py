"""The jobs of searches that a cluster knows, and the states of these searches.

A search has one or more jobs. The id of the first is the search's name. `NAME-2`, `NAME-3` and so on continue it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass

from vit_search.runtime import ray_session  # noqa: F401  # isort: skip  (before ray: it makes the settings of Ray)
from ray.job_submission import JobSubmissionClient

from vit_search.cluster.jobs.connection import OVER, Cluster, one_line_errors
from vit_search.cluster.jobs.head_command import on_head
from vit_search.config.strict_json import parse
from vit_search.errors import ClusterError
from vit_search.text import nearest

BEGINS_WITHIN_S = 300.0
"""How long a submitted job may take to make the folder of its search."""


@dataclass(frozen=True, kw_only=True)
class Launch:
    """One job of a search."""

    job: str
    search: str
    status: str
    """Ray's word: PENDING, RUNNING, STOPPED, SUCCEEDED or FAILED."""
    code: int | None
    """Exit code of the driver; None before its end, or if it was killed."""
    began: float
    ended: float | None
    user: str
    version: str

    @property
    def over(self) -> bool:
        """Whether the job has ended, for any reason."""
        return self.status in OVER

    @property
    def state(self) -> str:
        """The state of this job, in a word or two. For the state of its search, see `states`."""
        if self.status == "FAILED":
            codes = {130: "stopped", 4: "no trial completed", 5: "finished, MLflow lacks a part", 2: "refused"}
            return "killed" if self.code is None or self.code < 0 else codes.get(self.code, f"failed ({self.code})")
        return {"PENDING": "starting", "RUNNING": "running", "STOPPED": "stopped", "SUCCEEDED": "finished"}[self.status]


def launches(client: JobSubmissionClient) -> dict[str, list[Launch]]:
    """The jobs of all searches that this Ray knows, oldest first. The newest search is last."""
    with one_line_errors(client.get_address()):
        jobs = client.list_jobs()
    by_search: dict[str, list[Launch]] = {}
    for job in sorted(jobs, key=lambda job: job.start_time or 0):
        facts = job.metadata or {}
        if facts.get("vit_search") == "driver" and job.submission_id:
            launch = Launch(
                job=job.submission_id,
                search=facts.get("search", job.submission_id),
                status=str(job.status.value),
                code=job.driver_exit_code,
                began=(job.start_time or 0) / 1000,
                ended=job.end_time / 1000 if job.end_time else None,
                user=facts.get("user", ""),
                version=facts.get("version", ""),
            )
            by_search.setdefault(launch.search, []).append(launch)
    return by_search


def states(cluster: Cluster, last: Sequence[Launch]) -> dict[str, str]:
    """The states of searches. They come from the folders on the head; for a search without a folder, from its last job.

    Args:
        last: the last job of each search.
    """
    by_folder = states_of_folders(cluster)
    return {launch.search: by_folder.get(launch.search, launch.state) for launch in last}


def states_of_folders(cluster: Cluster) -> dict[str, str]:
    """The states in the folders on the head, by search."""
    with contextlib.suppress(ClusterError, ValueError):  # the head has another version, or no storage
        code, output = on_head(cluster, ["vit-search", "cluster", "states"], storage=False)
        if code == 0:
            return {name: state["word"] for name, state in parse(output.strip().rpartition("\n")[2]).items()}
    return {}


def newest(cluster: Cluster) -> str | None:
    """The search that was submitted last; None if this Ray knows none."""
    return next(reversed(launches(cluster.client)), None)


def is_beginning(cluster: Cluster, search: str) -> bool:
    """Whether a search was just submitted, and its job has not made the folder yet."""
    last = launches(cluster.client).get(search, [])[-1:]
    young = bool(last) and not last[0].over and time.time() - last[0].began < BEGINS_WITHIN_S
    return young and search not in states_of_folders(cluster)


def launches_of(cluster: Cluster, search: str) -> list[Launch]:
    """The jobs of a search.

    Raises: ClusterError if it has none.
    """
    by_search = launches(cluster.client)
    if search not in by_search:
        hint = f"; {nearest(search, list(by_search))}" if by_search else "; submit one with `vit-search submit FILE`."
        raise ClusterError(f"{cluster.address}: no search named {search!r} since this Ray was started{hint}")
    return by_search[search]
