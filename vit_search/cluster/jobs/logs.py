"""Prints the output of a search's drivers, and waits for the end of a search."""

from __future__ import annotations

import time
from collections.abc import Callable

from vit_search.cluster.jobs.connection import Cluster
from vit_search.cluster.jobs.launches import launches_of
from vit_search.cluster.jobs.output import follow_output, output_of

KEPT_WITHIN_S = 120.0
"""How long `wait` waits for the keeper to submit a killed job again."""

INTERRUPTED = 130


def logs(cluster: Cluster, search: str, *, write: Callable[[str], None], follow: bool = False) -> None:
    """Write the output of a search's drivers, job by job. With `follow`, until the last one ends."""
    jobs = launches_of(cluster, search)
    for launch in jobs:
        if len(jobs) > 1:
            write(f"--- {launch.job}, {launch.state}\n")
        if follow and launch is jobs[-1]:
            follow_output(cluster, launch.job, write)
        else:
            write(output_of(cluster.client, launch.job))


def wait(cluster: Cluster, search: str, *, write: Callable[[str], None]) -> int:
    """Follow a search to its end, also when it gets new jobs.

    Returns: its exit code; 1 if its job was killed and the keeper has not submitted it again.
    """
    killed = 0.0
    while True:
        last = launches_of(cluster, search)[-1]
        if not last.over:
            killed = 0.0
            follow_output(cluster, last.job, write)
        elif last.state != "killed":
            return INTERRUPTED if last.status == "STOPPED" else last.code or 0
        else:
            killed = killed or time.monotonic()
            if time.monotonic() - killed > KEPT_WITHIN_S:
                return 1
            time.sleep(2)
