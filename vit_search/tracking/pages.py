"""MLflow's server without its assistant, which runs shell commands for whoever asks from the same machine.

MLflow 3.17 asks for no more than that: every user of a machine on which `vit-search ui` runs, and every account behind an ssh tunnel to a
head, could have it fetch the commands from a server of theirs. No setting of MLflow's turns it off.
"""

from __future__ import annotations

from typing import Any

ASSISTANT = "/mlflow/assistant"
REFUSED = "MLflow's assistant is off here: it would run commands on this machine."


def without_accounts() -> Any:
    """MLflow's own ASGI application, for `mlflow server --app-name vit-search`."""
    from mlflow.server.fastapi_app import app
    from starlette.responses import PlainTextResponse

    async def served(scope: Any, receive: Any, send: Any) -> None:
        refused = scope["type"] == "http" and ASSISTANT in scope["path"]
        await (PlainTextResponse(REFUSED, 403) if refused else app)(scope, receive, send)

    return served


def authenticate() -> Any:
    """Who asks, for the key `authorization_function` of MLflow's file of accounts: name and password, as MLflow itself reads them."""
    from flask import Response, request
    from mlflow.server.auth import authenticate_request_basic_auth

    return Response(REFUSED, 403) if ASSISTANT in request.path else authenticate_request_basic_auth()
