"""The MLflow that is meant: found, reached, and named without what must stay secret."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import sqlite3
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

for _name, _value in {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_MODEL_CATALOG_URI": "",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",  # MLflow repeats a call whose reply was lost, and a run is made twice; we look first
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "GIT_PYTHON_REFRESH": "quiet",
}.items():
    os.environ.setdefault(_name, _value)

import mlflow
import sqlalchemy
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from vit_search.errors import SearchError, TrackingError
from vit_search.tracking import artifacts, searches
from vit_search.tracking.searches import SearchFacts

_log = logging.getLogger(__name__)

DEFAULT_DATABASE = "mlruns.db"
DATABASES = ("postgresql", "postgresql+psycopg", "postgresql+psycopg2", "mysql", "mysql+pymysql")
ENVIRONMENT = "MLFLOW_TRACKING_URI"
SQLITE = "sqlite:///"


def resolve_uri(given: str | None = None, folder: Path | None = None, facts: SearchFacts | None = None) -> str:
    """The MLflow that is meant: as given, else MLFLOW_TRACKING_URI, else as the search keeps it, else SQLite in ./mlruns.db.

    Every command asks here. Where the answer is not the one that a user expects, a line says which it is and why.

    Args:
        given: after --tracking-uri. folder, facts: of the search that the command is about; None where there is none.
    Returns: SQLite with a full path.
    """
    if given:
        return absolute(given)
    named = absolute(os.environ.get(ENVIRONMENT, ""))
    kept = kept_uri(folder, facts) if folder is not None and facts is not None and facts.tracking_uri else ""
    if folder is None or facts is None or not kept:
        return named or absolute(SQLITE + DEFAULT_DATABASE)
    if named:
        if public(named) != kept:
            _log.warning("MLflow: %s, by %s; %s has its records in %s.", public(named), ENVIRONMENT, folder.name, kept)
        return named
    written = facts.tracking_uri
    if Path(written.removeprefix(SQLITE)).is_absolute() and absolute(written) != kept:
        _log.warning("MLflow: %s, of this project; %s names %s, of the project that it comes from.", kept, folder.name, written)
    elif kept != absolute(SQLITE + DEFAULT_DATABASE):
        _log.warning("MLflow: %s, where %s has its records; --tracking-uri names another.", kept, folder.name)
    return kept


def of_newest(given: str | None) -> str:
    """The MLflow of a command that names no search: that of the newest search in ./searches, by the rule of `resolve_uri`."""
    with contextlib.suppress(SearchError):
        folder = searches.find(Path("searches"), None)
        return resolve_uri(given, folder, searches.read_facts(folder))
    return resolve_uri(given)


def kept_uri(folder: Path, facts: SearchFacts) -> str:
    """The MLflow that a search has kept.

    A database with a relative path is the nearest one above the search's folder. One with a full path gives way to the database
    of this project, if that has the search's records, too: the project was copied, or moved and the old place used again.
    """
    if not facts.tracking_uri.startswith(SQLITE):
        return facts.tracking_uri
    path = Path(facts.tracking_uri.removeprefix(SQLITE))
    above = (parent / (path.name if path.is_absolute() else path) for parent in folder.resolve().parents)
    own = next((place for place in above if place.is_file()), None)
    if not path.is_absolute():
        return absolute(SQLITE + str(own or path))
    return absolute(SQLITE + str(own if own is not None and (not path.exists() or _knows(own, facts.search_id)) else path))


def to_keep(uri: str, folder: Path) -> str:
    """What a search keeps of a tracking URI: no password, and a relative path to a database in the same project, which may move."""
    here, path = Path.cwd(), Path(uri.removeprefix(SQLITE))
    inside = uri.startswith(SQLITE) and path.is_relative_to(here) and folder.resolve().is_relative_to(here)
    return SQLITE + str(path.relative_to(here)) if inside else public(uri)


def absolute(uri: str) -> str:
    """A tracking URI with the full path of its SQLite file, so that each file has one spelling."""
    return SQLITE + str(Path(uri.removeprefix(SQLITE)).resolve()) if uri.startswith(SQLITE) else uri


def _knows(database: Path, search_id: str) -> bool:
    """Whether a SQLite database of MLflow's has a run of this search."""
    with contextlib.suppress(sqlite3.Error), contextlib.closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)) as found:
        return found.execute("SELECT 1 FROM tags WHERE key = 'search_id' AND value = ?", (search_id,)).fetchone() is not None
    return False


def public(uri: str) -> str:
    """A tracking URI without its password."""
    parts = urlsplit(uri)
    if not parts.password:
        return uri
    return urlunsplit(parts._replace(netloc=f"{parts.username}@{parts.hostname}" + (f":{parts.port}" if parts.port else "")))


def in_short(error: Exception) -> str:
    """The first line of what MLflow or a database said, without a password."""
    said = next(iter(str(error).splitlines()), type(error).__name__)
    for uri in (mlflow.get_tracking_uri(), os.environ.get(ENVIRONMENT, "")):
        secret = urlsplit(uri).password
        said = said.replace(secret, "…") if secret else said
    return said


def client_for(given: str | None) -> MlflowClient:
    """A client whose server or database answers.

    Raises: TrackingError, one line, when it does not.
    """
    uri = resolve_uri(given)
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    parts = urlsplit(uri)
    if parts.scheme in ("http", "https"):
        _check_server(uri)
    elif parts.scheme == "sqlite":
        place = Path(uri.removeprefix(SQLITE))
        if not os.access(place if place.exists() else place.parent, os.W_OK):
            raise TrackingError(f"{place}: the tracking database cannot be written; name another with --tracking-uri.")
    elif parts.scheme not in DATABASES:
        raise TrackingError(f"{public(uri)}: no tracking URI that MLflow writes to; use http://…, sqlite:///FILE or postgresql://….")
    with _environment_kept():
        mlflow.set_tracking_uri(uri)
    try:
        if parts.scheme in DATABASES:  # MLflow itself would try ten times, for 102 s
            sqlalchemy.create_engine(uri).connect().close()
        with _one_at_a_time(uri):
            client = MlflowClient(uri)
            client.search_experiments(max_results=1)
            moved = artifacts.find_again(Path(uri.removeprefix(SQLITE))) if parts.scheme == "sqlite" else None
    except Exception as error:
        said = in_short(error)
        mend = "mend it or name another."
        if "401" in said or (isinstance(error, MlflowException) and error.error_code == "UNAUTHENTICATED"):
            mend = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD to an account of it."
        elif isinstance(error, ModuleNotFoundError):
            mend = "pip install 'vit_search[postgres]', or MySQL's driver."
        elif parts.scheme in DATABASES:
            mend = "see that it runs, and the account in the URI."
        raise TrackingError(f"{public(uri)}: the tracking store does not answer ({said}); {mend}") from None
    if moved is not None:
        _log.warning("MLflow: the artifacts are taken from the folder of the database from now on, no more from %s.", moved)
    return client


@contextlib.contextmanager
def _one_at_a_time(uri: str) -> Iterator[None]:
    """MLflow makes the tables of a new SQLite file one by one, and two processes that do so at once stop each other."""
    place = Path(uri.removeprefix(SQLITE))
    with contextlib.ExitStack() as stack:
        if uri.startswith(SQLITE):
            with contextlib.suppress(OSError):  # a folder that takes no new file, or a storage without locks
                lock = stack.enter_context(place.with_name(f".{place.name}.lock").open("w"))
                fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _environment_kept() -> Iterator[None]:
    """MLflow writes what it is told into MLFLOW_TRACKING_URI, where the next search would take it for the user's word."""
    before = os.environ.pop(ENVIRONMENT, None)
    try:
        yield
    finally:
        os.environ.pop(ENVIRONMENT, None)
        if before is not None:
            os.environ[ENVIRONMENT] = before


def _check_server(uri: str) -> None:
    if urlsplit(uri).password:
        raise TrackingError("the tracking URI carries a password; drop it and set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD.")
    try:
        with urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=10):  # noqa: S310 -- http(s) only, by the caller's test
            pass
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise TrackingError(
            f"{uri}: the tracking server does not answer ({reason}); start it, or drop --tracking-uri for ./{DEFAULT_DATABASE}."
        ) from None
