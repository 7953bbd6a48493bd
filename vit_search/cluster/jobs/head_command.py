"""Runs one of our commands on the head of a cluster, as a short job, and returns its output."""

from __future__ import annotations

import contextlib
import shlex
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from vit_search.runtime import ray_session  # noqa: F401  # isort: skip  (before ray: it makes the settings of Ray)
from ray.job_submission import JobSubmissionClient

from vit_search.cluster.jobs.cluster_facts import Facts
from vit_search.cluster.jobs.connection import OVER, Cluster, one_line_errors, submit_job
from vit_search.cluster.jobs.output import follow_output, output_of
from vit_search.config.search_file import SearchSpec
from vit_search.config.strict_json import parse
from vit_search.config.weight_sources import parse as parse_source
from vit_search.errors import ClusterError
from vit_search.runtime.user import user_name

ANSWERS_WITHIN_S = 300.0
"""How long a short job on the head may take."""

FORGOTTEN_AFTER_S = 30.0

SEARCHES_FOLDER = '"${VIT_SEARCH_STORAGE:?is not set on the head}/searches"'


def on_head(
    cluster: Cluster,
    words: Sequence[str],
    *,
    storage: bool = True,
    write: Callable[[str], None] | None = None,
    files: Mapping[str, str] | None = None,
) -> tuple[int, str]:
    """Run one of our commands on the head, as a short job. A later call deletes the job.

    Args:
        words: `vit-search` and its arguments.
        files: texts by file name. The command finds them in its working folder.
        storage: add `--output` with the folder of searches on the head.
        write: called with the output while the command runs.
    Returns: the exit code and the output.
    Raises: ClusterError if the command does not end.
    """
    job = f"vit-search-{uuid.uuid4().hex[:12]}"
    entry = f"exec {shlex.join(words)}" + (f" --output {SEARCHES_FOLDER}" if storage else "")
    client = cluster.client
    with one_line_errors(cluster.address), tempfile.TemporaryDirectory() as folder:
        _remove_old(client)
        for name, text in (files or {}).items():
            Path(folder, name).write_text(text, encoding="utf-8")
        runtime = {"working_dir": folder} if files else None
        submit_job(
            client, entrypoint=entry, submission_id=job, metadata={"vit_search": "command", "user": user_name()}, runtime_env=runtime
        )
        try:
            if write is not None:
                follow_output(cluster, job, write)
            end = time.monotonic() + ANSWERS_WITHIN_S
            while (info := client.get_job_info(job)).status.value not in OVER:
                if time.monotonic() > end:
                    client.stop_job(job)
                    raise ClusterError(f"{cluster.address}: the head did not answer within {ANSWERS_WITHIN_S:g} s; see its Ray's logs.")
                time.sleep(0.2)
            output = output_of(client, job)
        except KeyboardInterrupt:
            client.stop_job(job)
            raise
    if info.driver_exit_code == 127:
        raise ClusterError(
            f"{cluster.address}: the head's Ray does not find vit-search; install it there, and start Ray with its bin folder on PATH."
        )
    if info.driver_exit_code is None:
        raise ClusterError(f"{cluster.address}: a job on the head failed ({' '.join((info.message or '').split())[:300]}).")
    return info.driver_exit_code, output


def _remove_old(client: JobSubmissionClient) -> None:
    """Delete short jobs that ended some time ago. Ray's monitor would write a job again that was deleted at once."""
    for job in client.list_jobs():
        short = (job.metadata or {}).get("vit_search") == "command"
        if short and job.submission_id and job.end_time and time.time() - job.end_time / 1000 > FORGOTTEN_AFTER_S:
            with contextlib.suppress(RuntimeError):  # another process has deleted it
                client.delete_job(job.submission_id)


def measure_cluster(cluster: Cluster, spec: SearchSpec | None = None, *, search: str = "", download: bool = False) -> Facts:
    """Measure the cluster. With a search, also check whether its images and weights are there, and its state.

    Raises: ClusterError.
    """
    words = ["vit-search", "cluster", "preflight"]
    if spec is not None and spec.data_config.path is not None and not download:
        words += ["--data", str(spec.data_config.path)]
    for source in map(parse_source, spec.pretrained if spec is not None else ()):
        words += ["--weights", source.place] if source.kind == "file" else []
    if search:
        words += ["--search", search]
    code, output = on_head(cluster, words, storage=False)
    last = (output.strip().splitlines() or [""])[-1]
    if code != 0 or not last.startswith("{"):
        raise ClusterError(f"{cluster.address}: {last.removeprefix('error: ') or 'the head output nothing'}")
    try:
        return Facts.from_dict(parse(last))
    except (ValueError, TypeError, KeyError):
        raise ClusterError(f"{cluster.address}: its vit_search is of another version than this one; install the same on both.") from None
