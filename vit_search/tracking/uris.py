"""Which MLflow is meant, and whether a search's folder may name it. MLflow itself, whose import takes seconds, is not needed to tell.

A search's folder may come from others: by git, in an archive, on a shared disk. What it names is used only where it gets nobody's
password and changes nobody's other files. What you name, by --tracking-uri or MLFLOW_TRACKING_URI, is used as it is.
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
"""What MLflow takes from the environment and sends to its server, whichever that is."""
CREDENTIALS_FILE = Path("~/.mlflow/credentials")
"""The same from a file."""
REDIRECTS = "MLFLOW_ALLOW_HTTP_REDIRECTS"

ADDRESS = re.compile(r"https?://([A-Za-z0-9._-]+@)?([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?(/[A-Za-z0-9._~/-]*)?")
"""A server's address that no two programs read in two ways."""

INTERNAL_NAMES = ("metadata", "metadata.google.internal", "instance-data", "instance-data.ec2.internal", "metadata.azure.internal")
INTERNAL = [
    ipaddress.ip_network(text)
    for text in ("169.254.0.0/16", "fe80::/10", "fd00:ec2::254", "100.100.100.200", "192.0.0.192", "168.63.129.16")
]
"""Link-local addresses, and the others at which clouds hand out a machine's credentials (AWS, Alibaba, Oracle, Azure)."""

ARTIFACT_STORES = ("", "file", "models", "runs", "s3", "gs", "r2", "wasb", "wasbs", "abfs", "abfss", "hdfs", "viewfs", "mlflow-artifacts")
"""Schemes under which a SQLite store may keep artifacts, besides http and https. They send no MLflow credentials."""


def resolve_uri(tracking_uri: str | None = None, folder: Path | None = None, facts: SearchFacts | None = None) -> str:
    """The MLflow that is meant: as given, else MLFLOW_TRACKING_URI, else as the search keeps it, else SQLite in ./mlruns.db.

    Every command asks here. Where the answer is not the one that a user expects, a line says which it is and why. The last two are
    refused where whoever wrote the folder could do harm by them: see `_refuse_server` and `_refuse_database`.

    Args:
        tracking_uri: after --tracking-uri. folder, facts: of the search that the command is about; None where there is none.
    Returns: SQLite with a full path.
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
        os.environ.setdefault(REDIRECTS, "false")  # which would lead to addresses that are refused here
    written = Path(facts.tracking_uri.removeprefix(SQLITE))
    if written.is_absolute() and SQLITE + str(written.resolve()) != kept and written.exists():
        _log.warning("MLflow: %s, of this project; %s names %s, of the one it was copied from.", kept, folder.name, facts.tracking_uri)
    elif kept != absolute(SQLITE + DEFAULT_DATABASE):
        _log.warning("MLflow: %s, where %s has its records; --tracking-uri names another.", kept, folder.name)
    return kept


def of_newest(tracking_uri: str | None) -> str:
    """The MLflow of a command that names no search: that of the newest search in ./searches, by the rule of `resolve_uri`."""
    folder = facts = None
    with contextlib.suppress(SearchError):
        folder = searches.find(Path("searches"), None)
        facts = searches.read_facts(folder)
    return resolve_uri(tracking_uri, folder, facts)


def kept_uri(folder: Path, facts: SearchFacts) -> str:
    """The MLflow that a search has kept.

    A database with a relative path is the nearest one above the search's folder. One with a full path gives way to the database
    of this project, if that has the search's records, too: the project was copied, or moved and the old place used again.
    """
    kept = facts.tracking_uri
    return absolute(SQLITE + str(_kept_path(folder, facts))) if kept.startswith(SQLITE) and kept.isprintable() else kept


def _kept_path(folder: Path, facts: SearchFacts) -> Path:
    """The file of `kept_uri`; where a link is there, the link."""
    path = Path(facts.tracking_uri.removeprefix(SQLITE))
    above = (parent / (path.name if path.is_absolute() else path) for parent in folder.resolve().parents)
    nearest = next((database for database in above if _there(database)), None)
    if not path.is_absolute():
        return nearest or Path.cwd() / path
    return nearest if nearest is not None and (not _there(path) or _knows(nearest, facts.search_id)) else path


def to_keep(uri: str, folder: Path) -> str:
    """What a search keeps of a tracking URI: no password, and a relative path to a database in the same project, which may move."""
    here, path = Path.cwd(), Path(uri.removeprefix(SQLITE))
    inside = uri.startswith(SQLITE) and path.is_relative_to(here) and folder.resolve().is_relative_to(here)
    return SQLITE + str(path.relative_to(here)) if inside else public(uri)


def absolute(uri: str) -> str:
    """A tracking URI with the full path of its SQLite file, so that each file has one spelling."""
    return SQLITE + str(Path(uri.removeprefix(SQLITE)).resolve()) if uri.startswith(SQLITE) else uri


def _database_here() -> str:
    """SQLite in ./mlruns.db.

    Raises: TrackingError.
    """
    database = Path.cwd() / DEFAULT_DATABASE
    if reason := _strange(database):
        raise TrackingError(f"{database}: {reason}; {MEND}")
    return absolute(SQLITE + DEFAULT_DATABASE)


def _refuse_database(path: Path, folder: Path, search_id: str) -> None:
    """Refuse a database that a search names, unless it is the `mlruns.db` of the search's own project, or has its records already.

    Raises: TrackingError.
    """
    reason = _strange(path)
    in_project = path.name == DEFAULT_DATABASE and folder.resolve().is_relative_to(path.parent.resolve())
    if not reason and not in_project and not _knows(path, search_id):
        reason = f"which is no {DEFAULT_DATABASE} of this project and has no record of this search"
    if reason:
        raise TrackingError(f"{folder / 'search.json'}: its records are said to be in {SQLITE}{path}, {reason}; {MEND}")


def _strange(database: Path) -> str:
    """Why a database that nobody has named is not used; empty where it may be. One that is missing will be made."""
    try:
        if database.is_symlink():
            return "which is a link"
        return belongs_to_other(database) if database.is_file() else "which is not a file" if database.exists() else ""
    except OSError as error:
        return f"which cannot be looked at ({error.strerror})"


def _there(path: Path) -> bool:
    """Whether a file is there, or a link to anything."""
    with contextlib.suppress(OSError):
        return path.is_file() or path.is_symlink()
    return False


def _refuse_server(uri: str, introduction: str) -> None:
    """Refuse an address that a file names: of no server, of a cloud's own services, or one that would be sent a password meant for another.

    Args:
        introduction: begins the message; the address follows.
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
    """Refuse a place of artifacts that a SQLite store names, where MLflow would send its credentials to another server.

    Raises: TrackingError.
    """
    parts = urlsplit(uri)
    if parts.scheme not in ARTIFACT_STORES or (parts.scheme == "mlflow-artifacts" and parts.netloc):
        _refuse_server(uri.replace("mlflow-artifacts:", "http:", 1), f"{database}: artifacts are said to be in")


def _credentials(uri: str) -> str:
    """Where MLflow finds credentials for a server; empty where it has none."""
    named = next((name for name in CREDENTIALS if os.environ.get(name, "").lower() not in ("", "false", "0")), "")
    return named or (str(CREDENTIALS_FILE) if CREDENTIALS_FILE.expanduser().exists() else "") or _netrc(uri)


def _netrc(uri: str) -> str:
    """The file `.netrc`, if it has an account for a server's host, whatever the port, or for all hosts: MLflow's library would send it."""
    from requests.utils import get_netrc_auth  # here: most commands ask no server

    return os.environ.get("NETRC", "~/.netrc") if get_netrc_auth(uri) else ""


def _origin(uri: str) -> tuple[str, str, int] | None:
    """Scheme, host and port; None for what is no address of a server."""
    try:
        parts = urlsplit(uri)
        port = parts.port or {"http": 80, "https": 443}[parts.scheme]
        return parts.scheme, (parts.hostname or "").rstrip("."), port
    except (ValueError, KeyError):
        return None


def _internal(host: str) -> bool:
    """Whether a name or an address, however it is written, leads to what only this machine's own cloud or link should reach."""
    if host.rstrip(".") in INTERNAL_NAMES:
        return True
    try:
        addresses = {str(info[4][0]).partition("%")[0] for info in socket.getaddrinfo(host, None)}  # also reads 2852039166 and 0xa9fea9fe
    except (OSError, UnicodeError):  # no such host; MLflow will say so
        addresses = set()
    return any(_plain(ipaddress.ip_address(text)) in network for text in addresses for network in INTERNAL)


def _plain(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """The IPv4 address that an IPv6 address stands for, if it does."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    translated = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF) if address in ipaddress.ip_network("64:ff9b::/96") else None
    return address.ipv4_mapped or address.sixtofour or translated or address


def _shown(uri: str) -> str:
    """An address of a file in one line, without a password."""
    with contextlib.suppress(ValueError):
        uri = public(uri)
    return uri.encode("unicode_escape").decode()[:200]


def _knows(database: Path, search_id: str) -> bool:
    """Whether a SQLite database of MLflow's has a run of this search."""
    with contextlib.suppress(sqlite3.Error), contextlib.closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)) as connection:
        return connection.execute("SELECT 1 FROM tags WHERE key = 'search_id' AND value = ?", (search_id,)).fetchone() is not None
    return False


def names_in(uri: str) -> set[str] | None:
    """The registered models in a SQLite database of MLflow's, none where the file is missing; None where that cannot be told."""
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
    return urlunsplit(parts._replace(netloc=f"{parts.username}@{parts.hostname}" + (f":{parts.port}" if parts.port else "")))
