"""The jobs of searches that a cluster knows of, and how their searches stand.

A search is one or more jobs there: the first has the search's name as its id, and `NAME-2`, `NAME-3` … take it up again.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass

from vit_search.runtime import ray_session  # noqa: F401  # isort: skip  (before ray, whose settings it makes)
from ray.job_submission import JobSubmissionClient

from vit_search.cluster.jobs.connection import OVER, Cluster, one_line_errors
from vit_search.cluster.jobs.head_command import on_head
from vit_search.config.strict_json import parse
from vit_search.errors import ClusterError
from vit_search.text import nearest

BEGINS_WITHIN_S = 300.0
"""What a submitted job gets to make its search's folder."""


@dataclass(frozen=True, kw_only=True)
class Launch:
    """One job of a search."""

    job: str
    search: str
    status: str
    """Ray's: PENDING, RUNNING, STOPPED, SUCCEEDED or FAILED."""
    code: int | None
    """Exit code of its driver; None before its end, and where it was killed."""
    began: float
    ended: float | None
    user: str
    version: str

    @property
    def over(self) -> bool:
        """Whether it has come to an end of whatever kind."""
        return self.status in OVER

    @property
    def state(self) -> str:
        """How this job stands, in a word or two; how its search does, `states` says."""
        if self.status == "FAILED":
            codes = {130: "stopped", 4: "no trial completed", 5: "finished, MLflow lacks a part", 2: "refused"}
            return "killed" if self.code is None or self.code < 0 else codes.get(self.code, f"failed ({self.code})")
        return {"PENDING": "starting", "RUNNING": "running", "STOPPED": "stopped", "SUCCEEDED": "finished"}[self.status]


def launches(client: JobSubmissionClient) -> dict[str, list[Launch]]:
    """The jobs of all searches that this Ray knows of, each search's in their order, the newest search last."""
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
    """How searches stand: as their folders on the head say, and where one has none yet, as its last job does.

    Args:
        last: of each search, its last job.
    """
    by_folder = states_of_folders(cluster)
    return {launch.search: by_folder.get(launch.search, launch.state) for launch in last}


def states_of_folders(cluster: Cluster) -> dict[str, str]:
    """What the folders on the head say, by search."""
    with contextlib.suppress(ClusterError, ValueError):  # a head of another version, or without its storage
        code, output = on_head(cluster, ["vit-search", "cluster", "states"], storage=False)
        if code == 0:
            return {name: state["word"] for name, state in parse(output.strip().rpartition("\n")[2]).items()}
    return {}


def newest(cluster: Cluster) -> str | None:
    """The search that was submitted last; None where this Ray knows of none."""
    return next(reversed(launches(cluster.client)), None)


def is_beginning(cluster: Cluster, search: str) -> bool:
    """Whether a search was submitted a moment ago, and its job has not made its folder yet."""
    last = launches(cluster.client).get(search, [])[-1:]
    young = bool(last) and not last[0].over and time.time() - last[0].began < BEGINS_WITHIN_S
    return young and search not in states_of_folders(cluster)


def launches_of(cluster: Cluster, search: str) -> list[Launch]:
    """A search's jobs.

    Raises: ClusterError where there is none.
    """
    by_search = launches(cluster.client)
    if search not in by_search:
        hint = f"; {nearest(search, list(by_search))}" if by_search else "; submit one with `vit-search submit FILE`."
        raise ClusterError(f"{cluster.address}: no search named {search!r} since this Ray was started{hint}")
    return by_search[search]
