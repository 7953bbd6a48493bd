"""Prints what the drivers of a search say, and waits for the end of the search."""

from __future__ import annotations

import time
from collections.abc import Callable

from vit_search.cluster.jobs.connection import Cluster
from vit_search.cluster.jobs.launches import launches_of
from vit_search.cluster.jobs.output import follow_output, output_of

KEPT_WITHIN_S = 120.0
"""How long a killed job is given to be taken up by the keeper, by who waits for its end."""

INTERRUPTED = 130


def logs(cluster: Cluster, search: str, *, write: Callable[[str], None], follow: bool = False) -> None:
    """What a search's drivers have said, job by job; to the end of the last one if followed."""
    jobs = launches_of(cluster, search)
    for launch in jobs:
        if len(jobs) > 1:
            write(f"--- {launch.job}, {launch.state}\n")
        if follow and launch is jobs[-1]:
            follow_output(cluster, launch.job, write)
        else:
            write(output_of(cluster.client, launch.job))


def wait(cluster: Cluster, search: str, *, write: Callable[[str], None]) -> int:
    """Follow a search to its end, across its jobs.

    Returns: its exit code; 1 where its job was killed and the keeper has not taken it up.
    """
    killed = 0.0
    while True:
        last = launches_of(cluster, search)[-1]
        if not last.over:
            follow_output(cluster, last.job, write)
        elif last.state != "killed":
            return INTERRUPTED if last.status == "STOPPED" else last.code or 0
        else:
            killed = killed or time.monotonic()
            if time.monotonic() - killed > KEPT_WITHIN_S:
                return 1
            time.sleep(2)
