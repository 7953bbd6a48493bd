"""Folders and secrets of the services on the head.

Each secret is made once, in a file that only its owner can read. A service gets its secrets through the environment when it starts. On
a head made from cluster.yaml, Ray runs as the owner, so whoever has Ray's token can read the secrets.
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
"""The MLflow account of searches. It can read and write only what it has made, and manages only the models that it has registered."""

POSTGRES_ACCOUNT = "postgres"
"""If we are root, PostgreSQL runs as this account, because it refuses to run as root."""

SAFE = re.compile(r"/[A-Za-z0-9._/-]*")
LONGEST_SOCKET = 107
"""Maximum length of a socket's path on Linux, in bytes."""


@dataclass(frozen=True)
class HeadServices:
    """The folders of the services on the head, and the port of MLflow."""

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
        """Folder of the secrets."""
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
        """Address of MLflow."""
        return f"http://127.0.0.1:{self.port}"

    def secret(self, name: str) -> str:
        """The secret of this name.

        Raises: ClusterError if it is missing.
        """
        try:
            return (self.secrets / name).read_text(encoding="utf-8").strip()
        except OSError as error:
            raise ClusterError(f"{self.secrets / name}: cannot be read ({error.strerror}); run `vit-search cluster head` first.") from None


def check_state(state: Path) -> None:
    """Check that supervisord's configuration file can name the state folder.

    Raises: ClusterError.
    """
    if not SAFE.fullmatch(str(state)):
        raise ClusterError(f"{state}: no folder for services; give --state an absolute path of letters, digits, and . _ - alone.")


@contextlib.contextmanager
def locked_folders(head: HeadServices, storage: Path) -> Iterator[None]:
    """Make the folders, closed to other accounts, and lock them. Until the context ends, no other process can start services in them."""
    root = os.getuid() == 0
    try:
        make_folder(head.state, parents=True)
        if problem := belongs_to_other(head.state):
            raise ClusterError(f"{problem}; chown it, or name another folder with --state.")
        head.state.chmod(0o711 if root else 0o700)  # PostgreSQL's account must pass through
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
    """Make the missing passwords, and the file from which drivers read their MLflow account."""
    for name in ("postgres_password", "mlflow_admin_password", "mlflow_search_password", "mlflow_secret_key"):
        write_private(head.secrets / name, secrets.token_urlsafe(32))
    variables = {
        "MLFLOW_TRACKING_URI": head.uri,
        "MLFLOW_TRACKING_USERNAME": SEARCHES,
        "MLFLOW_TRACKING_PASSWORD": head.secret("mlflow_search_password"),
    }
    text = "".join(
        f"export {name}={value}\n" for name, value in variables.items()
    )  # the values need no quotes: no character in them is special in a shell
    file = head.secrets / "mlflow.env"
    if not file.is_file() or file.read_text(encoding="utf-8") != text:
        file.unlink(missing_ok=True)
        write_private(file, text)


def postgres_account() -> pwd.struct_passwd:
    """The account POSTGRES_ACCOUNT, which we need if we are root.

    Raises: ClusterError if it does not exist.
    """
    try:
        return pwd.getpwnam(POSTGRES_ACCOUNT)
    except KeyError:
        raise ClusterError(
            f"PostgreSQL refuses to run as root, and there is no account {POSTGRES_ACCOUNT}; run this as an ordinary account."
        ) from None
