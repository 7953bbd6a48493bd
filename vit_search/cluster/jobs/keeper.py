"""Runs on the head: submits again each search that is to run, is not over, and has no driver.

So a search goes on by itself after its job was killed, and after the head itself died and came back with a new Ray that has
forgotten all jobs. It decides from the searches' folders; who may drive is decided by their locks, never here.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ray.job_submission import JobSubmissionClient

from vit_search.cluster import record
from vit_search.cluster.jobs.connection import connect
from vit_search.cluster.jobs.launches import Launch, launches
from vit_search.cluster.jobs.submit import submit_again
from vit_search.errors import VitSearchError
from vit_search.files import write_whole
from vit_search.text import counted

PAUSES_S = (0, 30, 120, 600)
"""Before each further submission of a search that has made no progress since the last one. After these, the keeper gives up."""


@dataclass
class _Attempts:
    """What was done for one search."""

    progress: int = -1
    times: int = 0
    at: float = 0.0
    trouble: str = ""


def keep(address: str, say: Callable[[str], None], *, every_s: float = 10.0) -> None:
    """Look after the searches in this node's storage until this process is ended.

    Args:
        address: of the Jobs API, on this node.
        say: told what happens, a line at a time.
    Raises: ClusterError where this node names no storage.
    """
    storage = record.storage()
    tried: dict[str, _Attempts] = {}
    trouble = ""
    while True:
        try:
            submit_abandoned(connect(address, insecure=True).client, storage, tried, say)
            write_whole(storage / record.KEEPER, json.dumps(time.time()))
            trouble = ""
        except (VitSearchError, OSError) as error:  # Ray may not be up yet, or be away; or the storage
            if str(error) != trouble:
                say(str(error))
            trouble = str(error)
        time.sleep(every_s)


def submit_abandoned(client: JobSubmissionClient, storage: Path, tried: dict[str, _Attempts], say: Callable[[str], None]) -> None:
    """Submit again each search that is to run, is not over, and has no driver."""
    launches_by_search: dict[str, list[Launch]] | None = None
    for folder, submission in record.all_of(storage):
        attempts = tried.setdefault(submission.search, _Attempts())
        try:
            if submission.asleep or record.driven(folder):
                continue
            launches_by_search = launches(client) if launches_by_search is None else launches_by_search
            last = launches_by_search.get(submission.search, [None])[-1]
            if last is not None and not last.over:
                continue
            if last is not None and last.status == "STOPPED":
                record.change(folder, wanted="stopped")
                say(f"{submission.search}: its job was stopped; it will not be taken up.")
                continue
            _submit_again(client, folder, submission, attempts, say)
        except VitSearchError as error:  # of this search alone: others may change its folder, say
            if str(error) != attempts.trouble:
                say(f"{submission.search}: {error}")
            attempts.trouble = str(error)


def _submit_again(
    client: JobSubmissionClient, folder: Path, submission: record.Submission, attempts: _Attempts, say: Callable[[str], None]
) -> None:
    progress = record.progress(folder)
    if progress > attempts.progress:
        attempts.progress, attempts.times = progress, 0
    if attempts.times == len(PAUSES_S):
        record.change(folder, wanted="stopped")
        say(f"{submission.search}: submitted {counted(attempts.times, 'time')} without progress; given up. `vit-search logs` says why.")
        return
    now = time.monotonic()
    if attempts.times and now - attempts.at < PAUSES_S[attempts.times]:
        return
    attempts.times, attempts.at = attempts.times + 1, now
    job = submit_again(client, submission.search, submission.launches + 1, ["vit-search", "cluster", "drive", submission.search])
    say(f"{submission.search}: it has no driver; submitted again as {job}.")
