"""Which MLflow is meant. MLflow itself, whose import takes seconds, is not needed to tell."""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from vit_search.errors import SearchError
from vit_search.tracking import searches
from vit_search.tracking.searches import SearchFacts

_log = logging.getLogger(__name__)

DEFAULT_DATABASE = "mlruns.db"
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
    written = Path(facts.tracking_uri.removeprefix(SQLITE))
    if written.is_absolute() and SQLITE + str(written.resolve()) != kept and written.exists():
        _log.warning("MLflow: %s, of this project; %s names %s, of the one it was copied from.", kept, folder.name, facts.tracking_uri)
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
