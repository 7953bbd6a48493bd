"""Chooses the MLflow to use, and decides whether a search's folder may name it. Does not import MLflow, which takes seconds.

A search's folder may come from somebody else: by git, in an archive, on a shared disk. So an address in it is used only if nobody's
password is sent there, and no files of others are changed. An address that you give, by --tracking-uri or MLFLOW_TRACKING_URI, is used
as it is.
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import os
import re
import socket
import sqlite3
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from vit_search.errors import SearchError, TrackingError
from vit_search.files import belongs_to_other
from vit_search.ledger import searches
from vit_search.ledger.searches import SearchFacts

_log = logging.getLogger(__name__)

DEFAULT_DATABASE = "mlruns.db"
ENVIRONMENT = "MLFLOW_TRACKING_URI"
SQLITE = "sqlite:///"
MEND = f"if it is meant, name it with --tracking-uri or {ENVIRONMENT}."

CREDENTIALS = tuple(f"MLFLOW_TRACKING_{name}" for name in ("USERNAME", "PASSWORD", "TOKEN", "AUTH", "AWS_SIGV4", "CLIENT_CERT_PATH"))
"""Environment variables with credentials, which MLflow sends to any server that it talks to."""
CREDENTIALS_FILE = Path("~/.mlflow/credentials")
"""A file with credentials, which MLflow sends, too."""
REDIRECTS = "MLFLOW_ALLOW_HTTP_REDIRECTS"

ADDRESS = re.compile(r"https?://([A-Za-z0-9._-]+@)?([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?(/[A-Za-z0-9._~/-]*)?")
"""A server's address that all programs read in the same way."""

INTERNAL_NAMES = ("metadata", "metadata.google.internal", "instance-data", "instance-data.ec2.internal", "metadata.azure.internal")
INTERNAL = [
    ipaddress.ip_network(text)
    for text in ("169.254.0.0/16", "fe80::/10", "fd00:ec2::254", "100.100.100.200", "192.0.0.192", "168.63.129.16")
]
"""Link-local addresses, and other addresses at which clouds give out a machine's credentials (AWS, Alibaba, Oracle, Azure)."""

ARTIFACT_STORES = ("", "file", "models", "runs", "s3", "gs", "r2", "wasb", "wasbs", "abfs", "abfss", "hdfs", "viewfs", "mlflow-artifacts")
"""Schemes of artifact locations that a SQLite store may have, besides http and https. MLflow sends no credentials to them."""


def resolve_uri(tracking_uri: str | None = None, folder: Path | None = None, facts: SearchFacts | None = None) -> str:
    """The address of the MLflow to use: as given, else MLFLOW_TRACKING_URI, else the search's own, else SQLite in ./mlruns.db.

    All commands call this. If the answer may surprise a user, a line is logged. The last two are refused if the author of the folder could
    do harm with them: see `_refuse_server` and `_refuse_database`.

    Args:
        tracking_uri: value of --tracking-uri.
        folder: of the search that the command is about, or None.
        facts: of the same search, or None.
    Returns: the address; for SQLite, with a full path.
    Raises: TrackingError.
    """
    if tracking_uri:
        return absolute(tracking_uri)
    named = absolute(os.environ.get(ENVIRONMENT, ""))
    if folder is None or facts is None or not facts.tracking_uri:
        return named or _database_here()
    if not isinstance(facts.tracking_uri, str) or not facts.tracking_uri.isprintable():
        raise TrackingError(f"{folder / 'search.json'}: tracking_uri is no address; name MLflow's with --tracking-uri.")
    kept = kept_uri(folder, facts)
    if named:
        if public(named) != kept:
            _log.warning("MLflow: %s, by %s; %s has its records in %s.", public(named), ENVIRONMENT, folder.name, _shown(kept))
        return named
    if facts.tracking_uri.startswith(SQLITE):
        _refuse_database(_kept_path(folder, facts), folder, facts.search_id)
    else:
        _refuse_server(kept, f"{folder / 'search.json'}: its records are said to be in")
        os.environ.setdefault(REDIRECTS, "false")  # redirects could lead to addresses that are refused here
    written = Path(facts.tracking_uri.removeprefix(SQLITE))
    if written.is_absolute() and SQLITE + str(written.resolve()) != kept and written.exists():
        _log.warning("MLflow: %s, of this project; %s names %s, of the one it was copied from.", kept, folder.name, facts.tracking_uri)
    elif kept != absolute(SQLITE + DEFAULT_DATABASE):
        _log.warning("MLflow: %s, where %s has its records; --tracking-uri names another.", kept, folder.name)
    return kept


def of_newest(tracking_uri: str | None) -> str:
    """The MLflow for a command that names no search: that of the newest search in ./searches, by the rule of `resolve_uri`."""
    folder = facts = None
    with contextlib.suppress(SearchError):
        folder = searches.find(Path("searches"), None)
        facts = searches.read_facts(folder)
    return resolve_uri(tracking_uri, folder, facts)


def kept_uri(folder: Path, facts: SearchFacts) -> str:
    """The address of MLflow that a search's folder names.

    A relative path means the nearest such database above the search's folder. A full path is replaced by the database of this project if
    that has the search's records, too: then the project was copied, or moved and the old place used again.
    """
    kept = facts.tracking_uri
    return absolute(SQLITE + str(_kept_path(folder, facts))) if kept.startswith(SQLITE) and kept.isprintable() else kept


def _kept_path(folder: Path, facts: SearchFacts) -> Path:
    """The database file of `kept_uri`. If it is a link, the link itself."""
    path = Path(facts.tracking_uri.removeprefix(SQLITE))
    above = (parent / (path.name if path.is_absolute() else path) for parent in folder.resolve().parents)
    nearest = next((database for database in above if _there(database)), None)
    if not path.is_absolute():
        return nearest or Path.cwd() / path
    return nearest if nearest is not None and (not _there(path) or _knows(nearest, facts.search_id)) else path


def to_keep(uri: str, folder: Path) -> str:
    """The form in which a search stores a tracking URI: no password, and a relative path within the same project, which may move."""
    here, path = Path.cwd(), Path(uri.removeprefix(SQLITE))
    inside = uri.startswith(SQLITE) and path.is_relative_to(here) and folder.resolve().is_relative_to(here)
    return SQLITE + str(path.relative_to(here)) if inside else public(uri)


def absolute(uri: str) -> str:
    """A tracking URI with the full path of its SQLite file, so that each file has one spelling."""
    return SQLITE + str(Path(uri.removeprefix(SQLITE)).resolve()) if uri.startswith(SQLITE) else uri


def _database_here() -> str:
    """SQLite in ./mlruns.db.

    Raises: TrackingError if it is not safe to use.
    """
    database = Path.cwd() / DEFAULT_DATABASE
    if reason := _strange(database):
        raise TrackingError(f"{database}: {reason}; {MEND}")
    return absolute(SQLITE + DEFAULT_DATABASE)


def _refuse_database(path: Path, folder: Path, search_id: str) -> None:
    """Refuse a database that a search names, unless it is the project's own `mlruns.db`, or already has the search's records.

    Raises: TrackingError.
    """
    reason = _strange(path)
    in_project = path.name == DEFAULT_DATABASE and folder.resolve().is_relative_to(path.parent.resolve())
    if not reason and not in_project and not _knows(path, search_id):
        reason = f"which is no {DEFAULT_DATABASE} of this project and has no record of this search"
    if reason:
        raise TrackingError(f"{folder / 'search.json'}: its records are said to be in {SQLITE}{path}, {reason}; {MEND}")


def _strange(database: Path) -> str:
    """Why a database that the user has not named is not used; empty if it may be used. A missing database is allowed: it will be made."""
    try:
        if database.is_symlink():
            return "which is a link"
        return belongs_to_other(database) if database.is_file() else "which is not a file" if database.exists() else ""
    except OSError as error:
        return f"which cannot be looked at ({error.strerror})"


def _there(path: Path) -> bool:
    """Whether there is a file, or a link to anything."""
    with contextlib.suppress(OSError):
        return path.is_file() or path.is_symlink()
    return False


def _refuse_server(uri: str, introduction: str) -> None:
    """Refuse an address in a file: not a server's, a cloud's own service, or one that would get another server's credentials.

    Args:
        introduction: start of the message; the address follows.
    Raises: TrackingError.
    """
    reason = ""
    if not uri.startswith(("http://", "https://")):
        reason = "and a file may name http, https and sqlite alone"
    elif not ADDRESS.fullmatch(uri):
        reason = "which is no plain address of a server"
    elif _internal(urlsplit(uri).hostname or ""):
        reason = "an address of the machine's own network or of its cloud"
    elif (secret := _credentials(uri)) and _origin(uri) != _origin(os.environ.get(ENVIRONMENT, "")):
        reason = f"and {secret} may be meant for another server, so nothing is sent there"
    if reason:
        raise TrackingError(f"{introduction} {_shown(uri)}, {reason}; {MEND}")


def refuse_artifacts(uri: str, database: Path) -> None:
    """Refuse an artifact location in a SQLite store if MLflow would send its credentials to another server.

    Raises: TrackingError.
    """
    parts = urlsplit(uri)
    if parts.scheme not in ARTIFACT_STORES or (parts.scheme == "mlflow-artifacts" and parts.netloc):
        _refuse_server(uri.replace("mlflow-artifacts:", "http:", 1), f"{database}: artifacts are said to be in")


def _credentials(uri: str) -> str:
    """Where MLflow finds credentials for a server; empty if nowhere."""
    named = next((name for name in CREDENTIALS if os.environ.get(name, "").lower() not in ("", "false", "0")), "")
    return named or (str(CREDENTIALS_FILE) if CREDENTIALS_FILE.expanduser().exists() else "") or _netrc(uri)


def _netrc(uri: str) -> str:
    """The file `.netrc` if it has an account for this host (any port) or for all hosts; else empty. The library requests would send it."""
    from requests.utils import get_netrc_auth  # imported here because most commands contact no server

    return os.environ.get("NETRC", "~/.netrc") if get_netrc_auth(uri) else ""


def _origin(uri: str) -> tuple[str, str, int] | None:
    """Scheme, host and port; None if this is not a server's address."""
    try:
        parts = urlsplit(uri)
        port = parts.port or {"http": 80, "https": 443}[parts.scheme]
        return parts.scheme, (parts.hostname or "").rstrip("."), port
    except (ValueError, KeyError):
        return None


def _internal(host: str) -> bool:
    """Whether a host, in any spelling, leads to something that only this machine's own cloud or network link should reach."""
    if host.rstrip(".") in INTERNAL_NAMES:
        return True
    try:
        addresses = {str(info[4][0]).partition("%")[0] for info in socket.getaddrinfo(host, None)}  # also reads 2852039166 and 0xa9fea9fe
    except (OSError, UnicodeError):  # there is no such host, which MLflow will report
        addresses = set()
    return any(_plain(ipaddress.ip_address(text)) in network for text in addresses for network in INTERNAL)


def _plain(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """The IPv4 address that an IPv6 address contains, or the address itself."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    translated = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF) if address in ipaddress.ip_network("64:ff9b::/96") else None
    return address.ipv4_mapped or address.sixtofour or translated or address


def _shown(uri: str) -> str:
    """An address from a file, in one line and without a password."""
    with contextlib.suppress(ValueError):
        uri = public(uri)
    return uri.encode("unicode_escape").decode()[:200]


def _knows(database: Path, search_id: str) -> bool:
    """Whether an MLflow database in SQLite has a run of this search."""
    with contextlib.suppress(sqlite3.Error), contextlib.closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)) as connection:
        return connection.execute("SELECT 1 FROM tags WHERE key = 'search_id' AND value = ?", (search_id,)).fetchone() is not None
    return False


def names_in(uri: str) -> set[str] | None:
    """Names of the registered models in an MLflow database in SQLite; empty if the file is missing, None if it cannot be read."""
    database = Path(uri.removeprefix(SQLITE))
    if not uri.startswith(SQLITE) or "?" in uri:
        return None
    if not os.path.lexists(database):
        return set()
    with contextlib.suppress(sqlite3.Error), contextlib.closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)) as connection:
        return {str(name) for (name,) in connection.execute("SELECT name FROM registered_models")}
    return None


def public(uri: str) -> str:
    """A tracking URI without its password."""
    parts = urlsplit(uri)
    if not parts.password:
        return uri
    host = parts.netloc.rpartition("@")[2].lower()  # with brackets and port; empty if a socket is used
    return urlunsplit(parts._replace(netloc=f"{parts.username}@{host}"))
