"""Where the services of a head keep their data, and the secrets that they share.

Secrets are made once, as files that only their owner can read; a service gets them through its environment when it starts. On a head
of cluster.yaml that owner is the account of Ray, so whoever holds Ray's token can read them.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pwd
import re
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vit_search.errors import ClusterError
from vit_search.files import belongs_to_other, make_folder, open_to_write, write_private

SEARCHES = "searches"
"""The MLflow account of searches: it reads and writes what it has made, nothing else. It manages the models that it has registered."""

POSTGRES_ACCOUNT = "postgres"
"""PostgreSQL refuses to run as root; where we do, it runs as this one."""

SAFE = re.compile(r"/[A-Za-z0-9._/-]*")
LONGEST_SOCKET = 107
"""Bytes of a socket's path, on Linux."""


@dataclass(frozen=True)
class HeadServices:
    """Where the services keep their things, and where MLflow answers."""

    state: Path
    port: int = 5000

    def __post_init__(self) -> None:
        check_state(self.state)
        if len(f"{self.sockets}/.s.PGSQL.5432") > LONGEST_SOCKET:
            raise ClusterError(f"{self.state}: too long a path for PostgreSQL's socket in it; give one of at most 80 characters.")
        if not 1024 <= self.port <= 65535:
            raise ClusterError(f"port {self.port}: MLflow's must be from 1024 to 65535.")

    @property
    def secrets(self) -> Path:
        """Folder of what must stay secret."""
        return self.state / "secrets"

    @property
    def database(self) -> Path:
        """Folder of PostgreSQL's data."""
        return self.state / "postgres" / "data"

    @property
    def sockets(self) -> Path:
        """Folder of PostgreSQL's socket."""
        return self.state / "postgres" / "run"

    @property
    def logs(self) -> Path:
        """Folder of all logs."""
        return self.state / "logs"

    @property
    def uri(self) -> str:
        """MLflow's."""
        return f"http://127.0.0.1:{self.port}"

    def secret(self, name: str) -> str:
        """One of them.

        Raises: ClusterError where it is missing.
        """
        try:
            return (self.secrets / name).read_text(encoding="utf-8").strip()
        except OSError as error:
            raise ClusterError(f"{self.secrets / name}: cannot be read ({error.strerror}); run `vit-search cluster head` first.") from None


def check_state(state: Path) -> None:
    """Refuse what supervisord's file could not name.

    Raises: ClusterError.
    """
    if not SAFE.fullmatch(str(state)):
        raise ClusterError(f"{state}: no folder for services; give --state an absolute path of letters, digits, and . _ - alone.")


@contextlib.contextmanager
def locked_folders(head: HeadServices, storage: Path) -> Iterator[None]:
    """The folders, closed to others; for as long as the context lasts no other process starts services in them."""
    root = os.getuid() == 0
    try:
        make_folder(head.state, parents=True)
        if problem := belongs_to_other(head.state):
            raise ClusterError(f"{problem}; chown it, or name another folder with --state.")
        head.state.chmod(0o711 if root else 0o700)  # PostgreSQL's account passes through
        for part in (head.secrets, head.logs, head.state / "artifacts", head.sockets.parent, head.sockets):
            make_folder(part)
            part.chmod(0o700)
        if root:
            for part in (head.sockets.parent, head.sockets):
                shutil.chown(part, postgres_account().pw_uid, postgres_account().pw_gid)
        for part in (storage / "searches", storage / "cache"):
            part.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = open_to_write(head.state / "lock")
    except OSError as error:
        raise ClusterError(f"{error.filename}: cannot be made ({error.strerror}); mount the disk, or name a folder with --state.") from None
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def make_secrets(head: HeadServices) -> None:
    """Make the passwords that are missing, and the file from which drivers read their MLflow account."""
    for name in ("postgres_password", "mlflow_admin_password", "mlflow_search_password", "mlflow_secret_key"):
        write_private(head.secrets / name, secrets.token_urlsafe(32))
    variables = {
        "MLFLOW_TRACKING_URI": head.uri,
        "MLFLOW_TRACKING_USERNAME": SEARCHES,
        "MLFLOW_TRACKING_PASSWORD": head.secret("mlflow_search_password"),
    }
    text = "".join(f"export {name}={value}\n" for name, value in variables.items())  # of letters that a shell leaves alone
    file = head.secrets / "mlflow.env"
    if not file.is_file() or file.read_text(encoding="utf-8") != text:
        file.unlink(missing_ok=True)
        write_private(file, text)


def postgres_account() -> pwd.struct_passwd:
    """The account that PostgreSQL runs as where we are root.

    Raises: ClusterError where there is none.
    """
    try:
        return pwd.getpwnam(POSTGRES_ACCOUNT)
    except KeyError:
        raise ClusterError(
            f"PostgreSQL refuses to run as root, and there is no account {POSTGRES_ACCOUNT}; run this as an ordinary account."
        ) from None
