"""Makes MLflow clients: checks that the server or database answers, and shows addresses without passwords."""

from __future__ import annotations

import contextlib
import logging
import os
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

for _name, _value in {
    "MLFLOW_MODEL_CATALOG_URI": "",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",  # MLflow would repeat a call whose reply was lost, and make a run twice; we look first
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_UV_AUTO_DETECT": "false",  # else MLflow copies uv.lock, pyproject.toml and .python-version from the current folder
    "GIT_PYTHON_REFRESH": "quiet",
}.items():
    os.environ.setdefault(_name, _value)

import mlflow
import sqlalchemy
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from vit_search.errors import TrackingError, VitSearchError
from vit_search.files import locked
from vit_search.runtime.signals import unbroken
from vit_search.tracking import artifacts
from vit_search.tracking.uris import DEFAULT_DATABASE, ENVIRONMENT, REDIRECTS, SQLITE, public, refuse_artifacts, resolve_uri

_log = logging.getLogger(__name__)

NONE_YET = "no tracking database of MLflow's is there; `vit-search run FILE` makes one, or name another with --tracking-uri."

DATABASES = ("postgresql", "postgresql+psycopg", "postgresql+psycopg2", "mysql", "mysql+pymysql")


def in_short(error: Exception) -> str:
    """The first line of an error message from MLflow or a database, without the password."""
    message = next(iter(str(error).splitlines()), type(error).__name__)
    for uri in (mlflow.get_tracking_uri(), os.environ.get(ENVIRONMENT, "")):
        secret = urlsplit(uri).password
        message = message.replace(secret, "…") if secret else message
    return message


def public_uri() -> str:
    """The current tracking URI without a password."""
    return public(mlflow.get_tracking_uri())


def is_made(uri: str) -> bool:
    """Whether there is an MLflow at this address. Servers are not asked; they count as there."""
    return not uri.startswith(SQLITE) or Path(uri.removeprefix(SQLITE)).exists()


def client_for(tracking_uri: str | None, needs: Literal["make", "write", "read"] = "make") -> MlflowClient:
    """Make a client, after checking that its server or database answers.

    Args:
        needs: access to a SQLite file. "make": write to it, and make it if it is missing. "write": write to an existing file.
            "read": an existing file that may be read-only.
    Raises: TrackingError, one line, if it does not answer.
    """
    uri = resolve_uri(tracking_uri)
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # 60 lines for each database error, which is raised, too
    parts, database, writable = urlsplit(uri), Path(uri.removeprefix(SQLITE)), True
    if parts.scheme in ("http", "https"):
        _check_server(uri)
    elif parts.scheme == "sqlite":
        if needs != "make" and not database.exists():
            raise TrackingError(f"{database}: {NONE_YET}")
        writable = os.access(database if database.exists() else database.parent, os.W_OK)
        if needs != "read" and not writable:
            raise TrackingError(f"{database}: the tracking database cannot be written; name another with --tracking-uri.")
    elif parts.scheme not in DATABASES:
        raise TrackingError(f"{public(uri)}: no tracking URI that MLflow writes to; use http://…, sqlite:///FILE or postgresql://….")
    with _environment_kept():
        mlflow.set_tracking_uri(uri)
    try:
        if parts.scheme in DATABASES:  # MLflow itself would try ten times, for 102 s
            sqlalchemy.create_engine(uri).connect().close()
        with _one_at_a_time(uri) if writable else contextlib.nullcontext():
            if parts.scheme == "sqlite" and needs == "make":
                _make_closed(database)
            elif parts.scheme == "sqlite" and not artifacts.is_mlflows(database):
                raise TrackingError(f"{database}: {NONE_YET}")
            client = MlflowClient(uri)
            client.search_experiments(max_results=1)
            moved = artifacts.find_again(database) if parts.scheme == "sqlite" and writable else None
            for address in artifacts.addresses(database) if parts.scheme == "sqlite" else ():
                refuse_artifacts(address, database)
    except VitSearchError:
        raise
    except Exception as error:
        message = in_short(error)
        mend = "mend it or name another."
        if "401" in message or (isinstance(error, MlflowException) and error.error_code == "UNAUTHENTICATED"):
            mend = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD to an account of it."
        elif isinstance(error, ModuleNotFoundError):
            mend = "pip install 'vit_search[postgres]', or MySQL's driver."
        elif parts.scheme in DATABASES:
            mend = "see that it runs, and the account in the URI."
        raise TrackingError(f"{public(uri)}: the tracking store does not answer ({message}); {mend}") from None
    if moved is not None:
        _log.warning("MLflow: the project was moved or copied; its artifacts are now read from beside the database, not from %s.", moved)
    return client


def _make_closed(database: Path) -> None:
    """Make an empty file for a new database that other accounts cannot read, as for searches. SQLite accepts an empty file."""
    with contextlib.suppress(FileExistsError):
        os.close(os.open(database, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))


@contextlib.contextmanager
def _one_at_a_time(uri: str) -> Iterator[None]:
    """Let one process at a time make a SQLite file's tables. MLflow makes them one by one, and two processes would block each other."""
    database = Path(uri.removeprefix(SQLITE))
    with contextlib.ExitStack() as stack:
        if uri.startswith(SQLITE):
            stack.enter_context(unbroken)  # a file with only some of the tables is useless
            with contextlib.suppress(OSError):  # a read-only folder, or a storage without locks
                stack.enter_context(locked(database.with_name(f".{database.name}.lock")))
        yield


@contextlib.contextmanager
def _environment_kept() -> Iterator[None]:
    """Keep MLFLOW_TRACKING_URI. MLflow overwrites it with the current URI, which the next search would take for the user's choice."""
    before = os.environ.get(ENVIRONMENT)
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(ENVIRONMENT, None)
        else:
            os.environ[ENVIRONMENT] = before


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Treats a redirect as an error, as MLflow does with its setting for that."""

    def redirect_request(self, *_: Any) -> None:
        """Do not follow."""


def _check_server(uri: str) -> None:
    if urlsplit(uri).password:
        raise TrackingError("the tracking URI carries a password; drop it and set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD.")
    opener = urllib.request.build_opener(*([] if os.environ.get(REDIRECTS, "true").lower() in ("true", "1") else [_NoRedirects]))
    try:
        with opener.open(f"{uri.rstrip('/')}/health", timeout=10):  # only http or https, as the caller has checked
            pass
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise TrackingError(
            f"{uri}: the tracking server does not answer ({reason}); start it, or drop --tracking-uri for ./{DEFAULT_DATABASE}."
        ) from None
