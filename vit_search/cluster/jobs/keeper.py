"""Runs on the head: submits each search again that should run, is not over, and has no driver.

So a search continues by itself after its job was killed, or after the head came back with a new Ray that does not know the old jobs.
The keeper decides only from the folders of the searches. Their locks decide which driver may run.
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
"""Pauses before each further submission of a search that makes no progress. After the last one, the keeper gives up."""


@dataclass
class _Attempts:
    """What the keeper has tried for one search."""

    progress: int = -1
    times: int = 0
    at: float = 0.0
    trouble: str = ""


def keep(address: str, say: Callable[[str], None], *, every_s: float = 10.0) -> None:
    """Check the searches in this node's storage, without end.

    Args:
        address: of the Jobs API on this node.
        say: called with one line for each thing that happens.
    Raises: ClusterError if this node has no storage.
    """
    storage = record.storage()
    tried: dict[str, _Attempts] = {}
    trouble = ""
    while True:
        try:
            submit_abandoned(connect(address, insecure=True).client, storage, tried, say)
            write_whole(storage / record.KEEPER, json.dumps(time.time()))
            trouble = ""
        except (VitSearchError, OSError) as error:  # Ray may not be up yet, or Ray or the storage may be away
            if str(error) != trouble:
                say(str(error))
            trouble = str(error)
        time.sleep(every_s)


def submit_abandoned(client: JobSubmissionClient, storage: Path, tried: dict[str, _Attempts], say: Callable[[str], None]) -> None:
    """Submit each search again that should run, is not over, and has no driver."""
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
        except VitSearchError as error:  # affects only this search: other accounts may be able to change its folder, for example
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
