"""Starts MLflow's server with accounts, on a head and in Kubernetes, and ends what an earlier server has left."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import psutil

from vit_search.cluster.head.folders import SEARCHES, HeadServices
from vit_search.cluster.head.postgres import postgres_answers
from vit_search.errors import ClusterError
from vit_search.files import write_private, write_whole
from vit_search.tracking import server_app

ADMIN = "admin"
WORKERS = 2
"""Worker processes of MLflow's server. Two can answer the drivers of several searches. Each needs about 400 MB."""

REMEMBERED_S = 60
"""How long MLflow remembers a correct password, in seconds. An old password works that long after a change.

Without it, checking passwords took 93 of the 97 seconds that a search of two trials waited for MLflow at its end
(tests/system/test_cluster_hosts.py, two busy cores).
"""

_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # no proxy for 127.0.0.1


def run_mlflow(head: HeadServices) -> None:
    """Wait for PostgreSQL, then replace this process by MLflow's server.

    Raises: ClusterError if PostgreSQL does not answer.
    """
    os.umask(0o077)
    end_group(group_file(head))
    write_whole(group_file(head), str(os.getpgid(0)))
    end = time.monotonic() + 120
    while not postgres_answers(head):
        if time.monotonic() > end:
            raise ClusterError(f"PostgreSQL does not answer in {head.sockets}; see {head.logs / 'postgres.log'}.")
        time.sleep(0.5)
    password = head.secret("postgres_password")
    database = f"postgresql+psycopg://mlflow:{password}@/{{}}?host={head.sockets}"
    settings = head.secrets / "mlflow_auth.ini"
    settings.unlink(missing_ok=True)
    write_private(settings, "\n".join(mlflow_accounts(database.format("mlflow_auth"))) + "\n")
    environment = os.environ | {
        "MLFLOW_BACKEND_STORE_URI": database.format("mlflow"),
        "MLFLOW_AUTH_CONFIG_PATH": str(settings),
        "MLFLOW_AUTH_ADMIN_PASSWORD": head.secret("mlflow_admin_password"),
        "MLFLOW_FLASK_SERVER_SECRET_KEY": head.secret("mlflow_secret_key"),
        **server_app.SETTINGS,
    }
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        environment.pop(name, None)
    os.chdir(head.state)
    os.execve(sys.executable, mlflow_command(head.port, head.state / "artifacts"), environment)  # noqa: S606 -- supervisord watches this process


def mlflow_command(port: int, artifacts: Path | str, *, host: str = "127.0.0.1", names: tuple[str, ...] = ()) -> list[str]:
    """The command that starts MLflow's server with accounts. `names` are further host names that clients use for it."""
    hosts = [f"{name}:{port}" for name in ("127.0.0.1", "localhost", *names)]
    command = [sys.executable, "-P", "-m", "mlflow", "server", "--host", host, "--port", str(port), "--workers", str(WORKERS)]
    command += ["--app-name", "basic-auth", "--artifacts-destination", str(artifacts)]
    return [*command, "--allowed-hosts", ",".join(hosts), "--cors-allowed-origins", ",".join(f"http://{host}" for host in hosts)]


def mlflow_accounts(database: str) -> list[str]:
    """Lines of the file that configures accounts in MLflow's server.

    Accounts have no permission by default; MLflow's own default is READ. Correct passwords are remembered, because checking a password
    (PBKDF2) costs the server more than a request does.
    """
    return [
        "[mlflow]",
        "default_permission = NO_PERMISSIONS",
        f"database_uri = {database}",
        f"admin_username = {ADMIN}",
        "authorization_function = vit_search.tracking.server_app:authenticate",
        f"auth_cache_ttl_seconds = {REMEMBERED_S}",
    ]


def mlflow_answers(head: HeadServices) -> bool:
    """Whether MLflow's server answers."""
    try:
        with _opener.open(f"{head.uri}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except (OSError, ValueError):
        return False


def open_account(head: HeadServices) -> None:
    """Make the account of searches in MLflow, unless it exists.

    Raises: ClusterError if MLflow refuses.
    """
    account = {"username": SEARCHES, "password": head.secret("mlflow_search_password")}
    request = urllib.request.Request(  # noqa: S310 -- http on 127.0.0.1
        f"{head.uri}/api/2.0/mlflow/users/create",
        method="POST",
        data=json.dumps(account).encode(),
        headers={"Content-Type": "application/json", "Authorization": basic(ADMIN, head.secret("mlflow_admin_password"))},
    )
    try:
        _opener.open(request, timeout=60).close()
    except urllib.error.HTTPError as error:
        answer = error.read(2000).decode("utf-8", "replace")
        if "RESOURCE_ALREADY_EXISTS" not in answer:
            mend = "the admin's password was changed in MLflow: write the new one to that file" if error.code == 401 else "see its log"
            raise ClusterError(f"MLflow did not open the account of searches ({error.code}); {mend}.") from None
    except OSError as error:
        raise ClusterError(f"MLflow did not open the account of searches ({error}); see {head.logs / 'mlflow.log'}.") from None


def basic(user: str, password: str) -> str:
    """The Authorization header of an account."""
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def end_group(kept: Path) -> None:
    """Kill what is left of an earlier MLflow. Its workers survive if their parent gets a SIGKILL, and keep the port."""
    with contextlib.suppress(OSError, ValueError):
        group = int(kept.read_text())
        members = [process for process in psutil.process_iter(["cmdline", "uids"]) if _of_group(process, group)]
        if group != os.getpgid(0) and all("mlflow" in " ".join(p.info["cmdline"] or []) for p in members if p.pid == group):
            for process in members:
                with contextlib.suppress(psutil.Error):
                    process.kill()
            psutil.wait_procs(members, 10)


def group_file(head: HeadServices) -> Path:
    """The file that holds the process group of the last MLflow."""
    return head.state / "mlflow.group"


def _of_group(process: psutil.Process, group: int) -> bool:
    try:
        return os.getpgid(process.pid) == group and process.info["uids"].real == os.getuid()
    except (OSError, AttributeError):
        return False
