"""Reads what a job has printed, at once or as it comes."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable

from vit_search.runtime import ray_session  # noqa: F401  # isort: skip  (before ray: it makes the settings of Ray)
from ray.job_submission import JobSubmissionClient

from vit_search.cluster.jobs.connection import Cluster, one_line_errors


def output_of(client: JobSubmissionClient, job: str) -> str:
    """What a job has printed, without the lines that Ray prints first."""
    with one_line_errors(client.get_address()):
        return _without_ray_lines(client.get_job_logs(job), job)


def _without_ray_lines(text: str, job: str) -> str:
    ray_line = re.search(rf"^Running entrypoint for job {re.escape(job)}: .*\n", text, re.MULTILINE)
    return text[ray_line.end() :] if ray_line else ""


def follow_output(cluster: Cluster, job: str, write: Callable[[str], None]) -> None:
    """Call `write` with what a job prints, until it ends."""
    from aiohttp import ClientError  # installed, since the Jobs API has answered

    async def read() -> None:
        start, begun = "", False
        async for text in cluster.client.tail_job_logs(job):
            if begun:
                write(text)
                continue
            start += text
            if printed := _without_ray_lines(start, job):
                write(printed)
            begun = "Running entrypoint for job" in start

    with one_line_errors(cluster.address):
        try:
            asyncio.run(read())
        except ClientError as error:
            raise RuntimeError(str(error)) from None
