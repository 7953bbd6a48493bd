"""PostgreSQL on a head: makes its database, starts its server, and ends a server that was left over."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path

import psutil

from vit_search.cluster.head.folders import HeadServices, postgres_account
from vit_search.errors import ClusterError
from vit_search.files import open_to_write


def run_postgres(head: HeadServices) -> None:
    """Replace this process by PostgreSQL. Makes the database first if there is none.

    Raises: ClusterError.
    """
    binaries = _postgres_binaries()
    if not head.database.is_dir():
        _make_database(head, binaries)
    version = (head.database / "PG_VERSION").read_text().strip()
    if (installed := _major(binaries)) != version:
        raise ClusterError(
            f"{head.database}: made by PostgreSQL {version}, and {installed} is installed; install {version}, or move it with pg_upgrade."
        )
    end_orphan(head)
    options = {"listen_addresses": "", "unix_socket_directories": str(head.sockets), "unix_socket_permissions": "0700"}
    options |= {
        "log_min_error_statement": "panic",
        "max_connections": "100",
    }  # a statement contains the values that it stores, which do not belong in a log
    command = [str(binaries / "postgres"), "-D", str(head.database)]
    for name, value in options.items():
        command += ["-c", f"{name}={value}"]
    os.chdir(head.database)
    if os.getuid() == 0:
        account = postgres_account()
        os.initgroups(account.pw_name, account.pw_gid)
        os.setgid(account.pw_gid)
        os.setuid(account.pw_uid)
    os.execv(command[0], command)  # noqa: S606 -- supervisord watches this process


def postgres_answers(head: HeadServices) -> bool:
    """Whether PostgreSQL accepts connections."""
    try:
        command = [str(_postgres_binaries() / "pg_isready"), "-q", "-h", str(head.sockets)]
    except ClusterError:
        return False
    return subprocess.run(command, capture_output=True).returncode == 0


def _make_database(head: HeadServices, binaries: Path) -> None:
    """Make PostgreSQL's data folder, completely or not at all.

    The superuser is the account that PostgreSQL runs as, through the socket. The account `mlflow` has a password.
    """
    fresh = head.database.with_name("data.new")
    as_account: dict[str, str | int] = {}
    if os.getuid() == 0:
        as_account = {"user": postgres_account().pw_uid, "group": postgres_account().pw_gid}
    superuser = postgres_account().pw_name if as_account else system_user_name()
    shutil.rmtree(fresh, ignore_errors=True)
    _run_or_fail([str(binaries / "initdb"), "-D", str(fresh), "-U", superuser, "--auth=peer", "-E", "UTF8", "--no-locale"], as_account)
    rules = [f"local all {superuser} peer", "local mlflow,mlflow_auth mlflow scram-sha-256"]
    with open_to_write(fresh / "pg_hba.conf", "w") as file:
        file.write("\n".join(rules) + "\n")
    password = head.secret("postgres_password")
    statements = [f"CREATE ROLE mlflow LOGIN PASSWORD '{password}'"]
    statements += [f"CREATE DATABASE {name} OWNER mlflow" for name in ("mlflow", "mlflow_auth")]
    _run_or_fail([str(binaries / "postgres"), "--single", "-D", str(fresh), "postgres"], as_account, "\n".join(statements) + "\n")
    fresh.rename(head.database)


def system_user_name() -> str:
    """The system's name for this account, which PostgreSQL uses, whatever the environment says.

    Raises: ClusterError if it has no name. initdb would refuse it, too.
    """
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        raise ClusterError(
            f"uid {os.getuid()} has no name on this machine, and PostgreSQL needs one; add it to /etc/passwd, or start the head as root."
        ) from None


def _run_or_fail(command: list[str], as_account: Mapping[str, str | int], stdin: str = "") -> None:
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, cwd="/", **as_account)  # type: ignore[call-overload]
    if done.returncode:
        reason = next(iter(reversed(done.stderr.strip().splitlines())), "no reason given")
        raise ClusterError(
            f"{Path(command[0]).name}: the database cannot be made ({reason}); mend that, then run `vit-search cluster head`."
        )


def _postgres_binaries() -> Path:
    """Folder of the newest PostgreSQL on this machine.

    Raises: ClusterError if there is none.
    """
    servers = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[-3].partition(".")[0]))
    on_path = shutil.which("postgres")
    if servers:
        return servers[-1].parent
    if on_path:
        return Path(on_path).resolve().parent
    raise ClusterError("no PostgreSQL on this machine; install it, e.g. `sudo apt-get install -y postgresql`.")


def _major(binaries: Path) -> str:
    printed = subprocess.run([binaries / "postgres", "--version"], capture_output=True, text=True, check=True).stdout
    return printed.split()[2].partition(".")[0]


def end_orphan(head: HeadServices) -> None:
    """End a PostgreSQL server on the same data that survived its supervisor."""
    try:
        process = psutil.Process(int((head.database / "postmaster.pid").read_text().split()[0]))
        if process.name() == "postgres" and str(head.database) in process.cmdline():
            process.send_signal(signal.SIGINT)
            process.wait(60)
    except (OSError, ValueError, IndexError, psutil.Error):
        return
