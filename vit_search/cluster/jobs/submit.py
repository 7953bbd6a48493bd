"""Submits a search to a cluster, resumes it and stops it, through Ray's Jobs API.

The Jobs API accepts each job id only once. So a file that is submitted twice is one search.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shlex
import tempfile
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from vit_search.runtime import ray_session  # noqa: F401  # isort: skip  (before ray: it makes the settings of Ray)
from ray.job_submission import JobSubmissionClient

from vit_search.cluster.jobs import preflight
from vit_search.cluster.jobs.connection import Cluster, one_line_errors, submit_job
from vit_search.cluster.jobs.head_command import measure_cluster, on_head
from vit_search.cluster.jobs.launches import launches, launches_of, states, states_of_folders
from vit_search.cluster.paths import check_paths
from vit_search.config import search_file
from vit_search.config.search_file import SearchSpec
from vit_search.errors import ClusterError
from vit_search.runtime.user import user_name
from vit_search.text import whole_number

STOPS_WITHIN_S = 120
"""How long a driver may take to end cleanly when its job is stopped. Ray's default of 3 s is too short."""
NOT_RECORDED = 5
"""Exit code of a driver that finished its search without reaching MLflow. `resume` sends the missing records."""


@dataclass(frozen=True)
class Submitted:
    """The result of a submission."""

    search: str
    new: bool
    """Whether this started a search; False if the same search exists."""
    state: str
    warnings: tuple[str, ...] = ()
    """Warnings about the cluster."""


def submit(cluster: Cluster, file: Path, *, key: str = "", again: bool = False, download: bool = False) -> Submitted:
    """Submit a search file. The same file with the same key and version is one search, however often you submit it.

    Args:
        key: a different key makes a further search of the same file.
        again: always start a further search.
        download: whether a missing data set may be downloaded.
    Raises: SpecError for the file; ClusterError if the cluster is not fit for it. Nothing is left on the cluster then.
    """
    spec = search_file.load(file)
    check_paths(spec, str(file))
    search = search_name(spec, uuid.uuid4().hex if again else key)
    earlier = launches(cluster.client).get(search)
    if earlier:
        return Submitted(search, False, states(cluster, earlier[-1:])[search])
    facts = measure_cluster(cluster, spec, search=search, download=download)
    findings = preflight.findings(facts, spec)
    if error := preflight.refusal(findings):
        raise error
    if facts.search and (facts.search["driven"] or facts.search["ended"] is not None or facts.search["wanted"] == "stopped"):
        return Submitted(search, False, facts.search["state"])
    submitted = hand_over(cluster, spec, search, key=key, download=download)
    return replace(submitted, warnings=tuple(finding.text for finding in findings))


def hand_over(cluster: Cluster, spec: SearchSpec, search: str, *, key: str = "", download: bool = False) -> Submitted:
    """The last step of `submit`, after all checks."""
    pins = {"--user": user_name(), "--key": key, "--pin": version("vit_search"), "--space": spec.space.space_hash}
    words = ["vit-search", "cluster", "drive", search, "--file", "search.yaml"]
    words += [word for name, value in pins.items() if value for word in (name, value)] + ["--download"] * download
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "search.yaml").write_text(spec.text, encoding="utf-8")
        new = _start(cluster.client, search, search, words, {"key": key, "space": spec.space.space_hash}, folder)
    return Submitted(search, new, "starting")


def search_name(spec: SearchSpec, key: str) -> str:
    """The name of the search that a file makes. The same text, version and key give the same name."""
    content = json.dumps([spec.text, version("vit_search"), key]).encode()
    return f"{spec.name}-{hashlib.sha256(content).hexdigest()[:10]}"


def resume(cluster: Cluster, search: str) -> str:
    """Continue a search that was stopped, failed, or ended before its last trial.

    Returns: the id of the new job.
    Raises: ClusterError if the search runs, is finished, or does not exist.
    """
    earlier = launches(cluster.client).get(search, [])
    by_folder = states_of_folders(cluster)
    if earlier and not earlier[-1].over:
        state = by_folder.get(search, earlier[-1].state)
        raise ClusterError(f"{search}: a job has it, and it is {state}; `vit-search status {search} --address {cluster.address}`.")
    if not earlier:  # this Ray is newer than the search, or the name is wrong
        code, output = on_head(cluster, ["vit-search", "status", search, "--json"])
        if code != 0:
            raise ClusterError(output.strip().rpartition("error: ")[2])
    if by_folder.get(search) == "finished" and not (earlier and earlier[-1].code == NOT_RECORDED):
        mend = f"`vit-search extend {search} --trials N --address auto`, on the head, goes on beyond its limits"
        raise ClusterError(f"{search}: this search is finished; {mend}.")
    words = ["vit-search", "cluster", "drive", search, "--again", "--pin", version("vit_search")]
    return submit_again(cluster.client, search, 2, words)


def submit_again(client: JobSubmissionClient, search: str, number: int, words: Sequence[str]) -> str:
    """Submit a further job of a search. Its number is the first free one from `number` on.

    Returns: its id. Another process that asks at the same moment gets the same id.
    """
    numbers = (launch.job.removeprefix(f"{search}-") for launch in launches(client).get(search, []))
    taken_numbers = [taken for text in numbers if (taken := whole_number(text)) is not None]
    job = f"{search}-{max([number, *(taken + 1 for taken in taken_numbers)])}"
    _start(client, job, search, words, {}, None)
    return job


def cancel(cluster: Cluster, search: str) -> bool:
    """Stop the job of a search; its driver ends cleanly. Returns whether there was a job to stop. `resume` continues the search."""
    jobs = launches_of(cluster, search)
    if jobs[-1].over:
        return False
    with one_line_errors(cluster.address):
        stopped = bool(cluster.client.stop_job(jobs[-1].job))
    with contextlib.suppress(ClusterError):  # the head may be unable to; the keeper then records it when it sees the job
        on_head(cluster, ["vit-search", "cluster", "states", "--stopped", search], storage=False)
    return stopped


def _start(client: JobSubmissionClient, job: str, search: str, words: Sequence[str], extra: dict[str, str], folder: str | None) -> bool:
    """Submit a driver; False if a job with this id exists."""
    runtime: dict[str, Any] = {
        "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOPS_WITHIN_S)}
    }  # Ray shows this to everybody: never put a secret here
    if folder is not None:
        runtime["working_dir"] = folder
    facts = {"vit_search": "driver", "search": search, "user": user_name(), "version": version("vit_search")}
    try:
        submit_job(client, entrypoint=f"exec {shlex.join(words)}", submission_id=job, metadata=facts | extra, runtime_env=runtime)
    except RuntimeError as error:
        if "already exists" in str(error):
            return False
        with one_line_errors(client.get_address()):
            raise
    return True
