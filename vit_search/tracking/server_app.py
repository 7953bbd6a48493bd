"""Starts MLflow's server without its assistant, which runs shell commands for anyone on the same machine.

MLflow 3.17 requires nothing else. So every user of a machine on which `vit-search ui` runs, and every account behind an ssh tunnel to a
head, could make it fetch commands from a server of theirs and run them. MLflow has no setting to turn the assistant off.
"""

from __future__ import annotations

import asyncio
import functools
import json
import os
import sys
import time
import urllib.request
import webbrowser
from typing import Any

from vit_search.tracking import saved_views

SAFE_PATH = {"PYTHONSAFEPATH": "1", "MLFLOW_UVICORN_OPTS": "--app-dir /dev/null"}
"""Prevent imports from the current folder. Uvicorn would put it first in `sys.path`; /dev/null contains no module."""

SETTINGS = SAFE_PATH | {
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "MLFLOW_ENABLE_AI_GATEWAY": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_MODEL_CATALOG_URI": "",
}
"""Environment variables of each MLflow server that this project starts."""

QUIET = {"MLFLOW_UVICORN_OPTS": f"{SAFE_PATH['MLFLOW_UVICORN_OPTS']} --log-level warning", "PYTHONWARNINGS": "ignore"}
"""Further variables for `vit-search ui`, so that it does not print each request."""

CHOICES = {
    "mlflow.workflowType_v1": "machine_learning",
    "mlflow.settings.telemetry.enabled_v1": False,
    "mlflow.telemetry.info.alert.dismissed_v1": True,
    "mlflow.assistant.fab.autoOpenedOnFirstLoad_v1": True,
}
"""Settings in the browser: the pages for training come first, usage data are off without a banner, and the assistant stays closed."""

KIND = "tags.`mlflow.experimentKind` = 'custom_model_development'"
"""Filter for the experiments that contain searches."""

ASSISTANT = "/mlflow/assistant"
REFUSED = "MLflow's assistant is off here: it would run commands on this machine."


def without_accounts() -> Any:
    """MLflow's own ASGI application without the assistant, for `mlflow server --app-name vit-search`."""
    from mlflow.server.fastapi_app import app
    from starlette.responses import PlainTextResponse

    async def served(scope: Any, receive: Any, send: Any) -> None:
        path = scope["path"] if scope["type"] == "http" else ""
        refused = ASSISTANT in path
        if scope["type"] == "lifespan":
            receive = functools.partial(_next_or_shutdown, receive)
        here = _Prepared(send, _head(await asyncio.to_thread(_first_views))).send if path == "/" else send
        await (PlainTextResponse(REFUSED, 403) if refused else app)(scope, receive, here)

    return served


async def _next_or_shutdown(receive: Any) -> Any:
    """The next message of the server. Ctrl-C cancels the wait; it then counts as shutdown, because MLflow's app would log a traceback."""
    try:
        return await receive()
    except asyncio.CancelledError:
        return {"type": "lifespan.shutdown"}


class _Prepared:
    """Sends MLflow's first page to the browser, with additions in its head."""

    def __init__(self, send: Any, head: str) -> None:
        self._send, self._head, self._body = send, head, b""
        self._start: dict[str, Any] = {}

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self._start = message
            return
        self._body += message.get("body", b"")
        if message.get("more_body"):
            return
        body = self._body.replace(b"<head>", b"<head>" + self._head.encode(), 1)
        changing = (b"content-length", b"etag", b"last-modified")
        headers = [(name, value) for name, value in self._start["headers"] if name.lower() not in changing]
        await self._send(self._start | {"headers": [*headers, (b"content-length", str(len(body)).encode())]})
        await self._send({"type": "http.response.body", "body": body})


SCRIPT = """
for (const [key, value] of Object.entries(CHOICES))
  if (localStorage.getItem(key) === null) localStorage.setItem(key, JSON.stringify(value));
for (const [id, view] of Object.entries(VIEWS)) {
  const key = `MLflowLocalStorage-1.1-ExperimentPage-["${id}"]-ReactComponentState`, seen = `vit_search.view-${id}`;
  if (localStorage.getItem(seen) === JSON.stringify(view)) continue;
  const own = JSON.parse(localStorage.getItem(key) ?? "{}");
  const columns = new Set([...view.selectedColumns, ...(own.selectedColumns ?? [])]);
  localStorage.setItem(key, JSON.stringify({...view, ...own, selectedColumns: [...columns]}));
  localStorage.setItem(seen, JSON.stringify(view));
}
"""
"""Makes our settings unless the user has chosen others. Adds an experiment's columns once; the user can remove them."""

STYLE = "[data-assistant-ui] { display: none !important }"


def _head(first_views: dict[str, Any]) -> str:
    """The addition to the head of MLflow's page."""
    choices, views_ = (json.dumps(values).replace("<", "\\u003c") for values in (CHOICES, first_views))  # a tag may contain `</script>`
    return f"<style>{STYLE}</style><script>{{ const CHOICES = {choices}, VIEWS = {views_};{SCRIPT}}}</script>"


def _first_views() -> dict[str, Any]:
    """Order and columns with which each experiment's page begins, by its id; none if the store does not answer."""
    from mlflow.exceptions import MlflowException

    try:
        experiments = _client().search_experiments(filter_string=KIND)
    except MlflowException:
        return {}
    states = {experiment.experiment_id: saved_views.first_state(experiment.tags) for experiment in experiments}
    return {key: state for key, state in states.items() if state is not None}


@functools.cache
def _client() -> Any:
    """A client of the store behind this server."""
    from mlflow import MlflowClient
    from mlflow.server.constants import BACKEND_STORE_URI_ENV_VAR

    return MlflowClient(os.environ[BACKEND_STORE_URI_ENV_VAR])


def address(client: Any, port: int) -> str:
    """Address of the newest search's experiment, among MLflow's pages for training; of the list of experiments if there is none."""
    experiments = [experiment.experiment_id for experiment in client.search_experiments(filter_string=KIND)]
    newest = client.search_runs(experiments, order_by=["attributes.start_time DESC"], max_results=1) if experiments else []
    page = f"/{newest[0].info.experiment_id}/runs" if newest else ""
    return f"http://127.0.0.1:{port}/#/experiments{page}?workflowType=machine_learning"


def authenticate() -> Any:
    """The user who asks, by name and password as in MLflow; the assistant is refused. For `authorization_function` in the accounts file."""
    from flask import Response, request
    from mlflow.server.auth import authenticate_request_basic_auth

    return Response(REFUSED, 403) if ASSISTANT in request.path else authenticate_request_basic_auth()


def open_when_up(url: str, *, patience_s: float = 120) -> None:
    """Open a page in the browser as soon as its server answers."""
    end = time.monotonic() + patience_s
    while time.monotonic() < end:
        try:
            with urllib.request.urlopen(url.partition("#")[0] + "health", timeout=5):  # noqa: S310 -- our own address
                webbrowser.open(url)
                return
        except OSError:
            time.sleep(0.2)


if __name__ == "__main__":
    open_when_up(sys.argv[1])
