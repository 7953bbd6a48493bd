"""Connects to the Jobs API of a cluster with this machine's token. Turns each failure into one line."""

from __future__ import annotations

import contextlib
import logging
import os
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from vit_search.runtime import ray_session  # noqa: F401  # isort: skip  (before ray: it makes the settings of Ray)
from ray.dashboard.modules import dashboard_sdk
from ray.exceptions import AuthenticationError, RayError
from ray.job_submission import JobSubmissionClient

from vit_search.errors import ClusterError
from vit_search.runtime import ray_token as token

for _chatty in ("dashboard.modules.dashboard_sdk", "dashboard.modules.job.sdk", "_private.runtime_env.packaging"):
    logging.getLogger(f"ray.{_chatty}").setLevel(logging.WARNING)

# Where RAY_AUTH_MODE=token is set, Ray's client would add this machine's token also for a cluster that asks for none. `connect` decides.
dashboard_sdk.get_auth_headers_if_auth_enabled = lambda user_headers: {}  # type: ignore[attr-defined]

OVER = ("STOPPED", "SUCCEEDED", "FAILED")

NO_AGENT = "No available agent"
AGENT_STARTS_WITHIN_S = 120.0
"""How long a new head may take until its agent can run jobs. Ray's own 10 s are too short on a busy machine."""

TUNNEL = "see that the head runs and its tunnel is up: `ray dashboard cluster.yaml`, or `ssh -N -L 8265:127.0.0.1:8265 HEAD`"

OPEN = (
    "its Jobs API answers without a token, so that whoever reaches it runs code there (ShadowRay, CVE-2023-48022); "
    "start Ray with RAY_AUTH_MODE=token"
)


@dataclass(frozen=True)
class Cluster:
    """A Jobs API that answers."""

    address: str
    client: JobSubmissionClient
    warning: str = ""
    """What is unsafe about this cluster, if the user allowed that."""


def connect(address: str, *, insecure: bool = False) -> Cluster:
    """Connect to the Jobs API of a cluster. Sends this machine's token if the cluster asks for one.

    Args:
        address: its URL.
        insecure: accept a cluster that asks for no token. It then gets none.
    Raises: ClusterError, one line.
    """
    if urlsplit(address).scheme not in ("http", "https") or not urlsplit(address).hostname:
        raise ClusterError(f"--address {address}: no URL of a Jobs API; give one such as http://127.0.0.1:8265.")
    address = address.rstrip("/")
    if _is_open(address):
        if not insecure:
            raise ClusterError(f"{address}: {OPEN} (`vit-search cluster token`), or add --insecure.")
        return Cluster(address, _client(address, None), f"{address}: {OPEN}.")
    secret = _token()
    if secret is None:
        raise ClusterError(
            f"{address}: it asks for a token and this machine has none; copy the head's ~/.ray/auth_token to the same place here, "
            "mode 0600, or name another file in RAY_AUTH_TOKEN_PATH."
        )
    return Cluster(address, _client(address, secret))


def _is_open(address: str) -> bool:
    """Whether the Jobs API answers without a token."""
    request = urllib.request.Request(f"{address}/api/jobs/", headers={"User-Agent": "vit-search"})  # noqa: S310 -- `connect` accepts only http and https
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:  # noqa: S310
            answer.read()
            return True
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            return False
        raise ClusterError(f"{address}: no Jobs API of Ray answers there (HTTP {error.code}); {TUNNEL}.") from None
    except (OSError, ValueError) as error:
        raise ClusterError(f"{address}: cannot be reached ({getattr(error, 'reason', error)}); {TUNNEL}.") from None


def _token() -> str | None:
    """Ray's token, from the environment or Ray's token file, never from an argument.

    Raises: ClusterError if others can read the file, or it cannot be read.
    """
    if from_environment := os.environ.get("RAY_AUTH_TOKEN", "").strip():
        return from_environment
    if not token.token_path().exists():
        return None
    if problem := token.problem():
        raise ClusterError(problem)
    return token.read().strip() or None


def _client(address: str, secret: str | None) -> JobSubmissionClient:
    hidden = {name: os.environ.pop(name) for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS") if name in os.environ}
    try:  # Ray would use these two instead of the given address
        with one_line_errors(address):
            return JobSubmissionClient(address, headers={"Authorization": f"Bearer {secret}"} if secret else None)
    finally:
        os.environ.update(hidden)


@contextlib.contextmanager
def one_line_errors(address: str) -> Iterator[None]:
    """Turn what goes wrong in the Jobs API into a one-line ClusterError."""
    try:
        yield
    except (RuntimeError, OSError, RayError) as error:  # errors of requests are OSErrors
        reason = " ".join(str(error).split())
        if isinstance(error, AuthenticationError):
            raise ClusterError(f"{address}: it refuses this machine's token; copy the head's ~/.ray/auth_token again, mode 0600.") from None
        if "ray[default]" in reason:
            raise ClusterError("Ray's Jobs API is not installed here; pip install 'vit_search[cluster]'.") from None
        if NO_AGENT in reason:
            mend = "see its dashboard_agent.log: another Ray there may have its port; then start Ray with --dashboard-agent-listen-port 0"
            raise ClusterError(f"{address}: the head has no agent that runs jobs; {mend}.") from None
        raise ClusterError(f"{address}: the Jobs API failed ({reason[:300]}); {TUNNEL}.") from None


def submit_job(client: JobSubmissionClient, *, patience_s: float = AGENT_STARTS_WITHIN_S, **job: Any) -> None:
    """Submit a job. If the head has just started and its agent cannot run jobs yet, wait for it.

    Raises: RuntimeError, as Ray's client does.
    """
    end = time.monotonic() + patience_s
    while True:
        try:
            client.submit_job(**job)
            return
        except RuntimeError as error:
            if NO_AGENT not in str(error) or time.monotonic() > end:
                raise
            time.sleep(1)
