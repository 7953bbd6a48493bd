"""Watches for the AWS notice that this spot instance will be taken away, and drains the node.

The notice comes two minutes ahead. After the drain, Ray starts nothing more on this node, and Tune continues the trials on other
nodes without counting a failure. Only version 2 of the metadata service is used (IMDSv2): it wants a token before each question.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from vit_search.errors import ClusterError

METADATA = "http://169.254.169.254"
LOOK_EVERY_S = 5.0
"""Seconds between two checks, as AWS advises. The notice comes two minutes ahead."""

TOKEN_S = 21600
REASON = "DRAIN_NODE_REASON_PREEMPTION"

_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # never through a proxy: it would see the token


@dataclass(frozen=True)
class Notice:
    """What AWS has announced for this instance."""

    action: str
    """"terminate", "stop" or "hibernate"."""
    at: float
    """When it happens, in seconds since 1970."""


class Metadata:
    """The metadata service of this machine."""

    def __init__(self, base: str = METADATA) -> None:
        self._base = base
        self._token = ""

    def notice(self) -> Notice | None:
        """The notice, or None if there is none.

        Raises: OSError if the service does not answer, for example on a machine outside AWS.
        """
        try:
            return self._ask()
        except urllib.error.HTTPError as error:
            if error.code != 401:
                raise
        self._token = ""  # the token has expired
        return self._ask()

    def _ask(self) -> Notice | None:
        self._token = self._token or self._call("PUT", "/latest/api/token", {"X-aws-ec2-metadata-token-ttl-seconds": str(TOKEN_S)})
        try:
            text = self._call("GET", "/latest/meta-data/spot/instance-action", {"X-aws-ec2-metadata-token": self._token})
        except urllib.error.HTTPError as error:
            if error.code == 404:  # no notice
                return None
            raise
        try:
            content = json.loads(text)
            return Notice(str(content["action"]), datetime.fromisoformat(content["time"]).timestamp())
        except (ValueError, KeyError, TypeError):
            raise OSError(f"the metadata service said {text[:80]!r}") from None

    def _call(self, method: str, path: str, headers: dict[str, str]) -> str:
        request = urllib.request.Request(self._base + path, method=method, headers=headers)  # noqa: S310 -- the caller chooses the http address
        with _opener.open(request, timeout=2) as answer:
            return str(answer.read(65536).decode("utf-8", "replace"))


def watch(metadata: Metadata, *, node_id: str | None = None, sleep: Callable[[float], None] = time.sleep) -> Iterator[str]:
    """Check for notices without end, and drain the node when one comes. Yields one line for each thing that happens.

    Args:
        node_id: the node to drain; this machine's by default.
    """
    drained, away = None, False
    while True:
        try:
            notice = metadata.notice()
            away = False
        except OSError as error:
            notice = None
            if not away:
                yield f"the metadata service does not answer ({error}); looking on."
            away = True
        if notice is not None and notice != drained:
            left = max(0, round(notice.at - time.time()))
            yield f"AWS will {notice.action} this instance in {left} s; draining the node."
            try:
                drain(left, notice.action, node_id)
                drained = notice
                yield "drained."
            except ClusterError as error:
                yield str(error)
        sleep(LOOK_EVERY_S)


def drain(left_s: int, action: str, node_id: str | None = None) -> None:
    """Make Ray start nothing more on this node, and tell Ray when the node will be gone.

    Raises: ClusterError if Ray refuses or does not answer.
    """
    command = [str(Path(sys.executable).with_name("ray")), "drain-node", "--reason", REASON]
    command += ["--reason-message", f"AWS spot notice: {action}", "--deadline-remaining-seconds", str(left_s)]
    command += ["--node-id", node_id] if node_id else []
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=90)
    except subprocess.TimeoutExpired:
        raise ClusterError("this node could not be drained: Ray did not answer within 90 s; trying again.") from None
    if done.returncode:
        reason = next(iter(reversed(done.stderr.strip().splitlines())), "no reason given")
        raise ClusterError(f"this node could not be drained ({reason}); trying again.")
