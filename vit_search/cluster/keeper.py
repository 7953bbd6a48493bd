"""On the head, supervised: submits again each search that was to run, is not over, and has no driver any more.

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

from vit_search.cluster import jobs, record
from vit_search.errors import VitSearchError
from vit_search.files import write_whole
from vit_search.text import counted

PAUSES_S = (0, 30, 120, 600)
"""Before each further submission of a search that has got nowhere since the last one; then it is stopped."""


@dataclass
class _Tried:
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
    place = record.storage()
    tried: dict[str, _Tried] = {}
    trouble = ""
    while True:
        try:
            look(jobs.connect(address, insecure=True).client, place, tried, say)
            write_whole(place / record.KEEPER, json.dumps(time.time()))
            trouble = ""
        except (VitSearchError, OSError) as error:  # Ray may not be up yet, or be away; or the storage
            if str(error) != trouble:
                say(str(error))
            trouble = str(error)
        time.sleep(every_s)


def look(client: JobSubmissionClient, place: Path, tried: dict[str, _Tried], say: Callable[[str], None]) -> None:
    """Look at all searches once."""
    known: dict[str, list[jobs.Launch]] | None = None
    for folder, submission in record.all_of(place):
        own = tried.setdefault(submission.search, _Tried())
        try:
            if submission.asleep or record.driven(folder):
                continue
            known = jobs.launches(client) if known is None else known
            last = known.get(submission.search, [None])[-1]
            if last is not None and not last.over:
                continue
            if last is not None and last.status == "STOPPED":
                record.change(folder, wanted="stopped")
                say(f"{submission.search}: its job was stopped; it will not be taken up.")
                continue
            _submit_again(client, folder, submission, own, say)
        except VitSearchError as error:  # of this search alone: others may change its folder, say
            if str(error) != own.trouble:
                say(f"{submission.search}: {error}")
            own.trouble = str(error)


def _submit_again(
    client: JobSubmissionClient, folder: Path, submission: record.Submission, tried: _Tried, say: Callable[[str], None]
) -> None:
    progress = record.progress(folder)
    if progress > tried.progress:
        tried.progress, tried.times = progress, 0
    if tried.times == len(PAUSES_S):
        record.change(folder, wanted="stopped")
        say(f"{submission.search}: submitted {counted(tried.times, 'time')} without progress; stopped. `vit-search logs` says why.")
        return
    now = time.monotonic()
    if tried.times and now - tried.at < PAUSES_S[tried.times]:
        return
    tried.times, tried.at = tried.times + 1, now
    job = jobs.submit_again(client, submission.search, submission.launches + 1, ["vit-search", "cluster", "drive", submission.search])
    say(f"{submission.search}: it has no driver; submitted again as {job}.")
