"""What runs on a cluster's head beside Ray: PostgreSQL, MLflow and the keeper of searches, each started anew when it dies.

supervisord keeps them, under a state folder on a disk of the head's own: never on shared storage, where a database's locks do not
hold. PostgreSQL listens on a socket file alone, MLflow on 127.0.0.1 alone and for accounts alone. Secrets are made once, as files
that their owner alone reads; a service gets them through its environment, when it is started. On a head of cluster.yaml that owner is
the account of Ray, so whoever holds Ray's token can read them.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import pwd
import re
import secrets
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from vit_search.errors import ClusterError
from vit_search.files import belongs_to_other, make_folder, open_to_write, write_private, write_whole
from vit_search.tracking import server_app

ADMIN = "admin"
SEARCHES = "searches"
"""The MLflow account of searches: it reads and writes what it has made, nothing else. It manages the models that it has registered."""

POSTGRES_ACCOUNT = "postgres"
"""PostgreSQL refuses to run as root; where we do, it runs as this one."""

START_S = 240.0
WORKERS = 2
"""Of MLflow's server: two answer the drivers of several searches, at some 400 MB each."""

REMEMBERED_S = 60
"""Seconds in which a password that was changed is still good. Without it, 93 of the 97 seconds that a search of two trials waited
for MLflow at its end went into hashes (tests/test_cluster_hosts.py, two busy cores)."""

SAFE = re.compile(r"/[A-Za-z0-9._/-]*")
LONGEST_SOCKET = 107
"""Bytes of a socket's path, on Linux."""

_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy is not asked for what is on 127.0.0.1


@dataclass(frozen=True)
class Head:
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


@dataclass(frozen=True)
class Program:
    """A command that supervisord keeps running."""

    name: str
    command: tuple[str, ...]
    stop: str = "TERM"
    """The signal that ends it in peace."""
    first: int = 10
    """The lower, the earlier it is started and the later stopped."""


@dataclass(frozen=True)
class Service:
    """How a program stands."""

    name: str
    state: str
    """In supervisord's word: RUNNING, STARTING, BACKOFF, FATAL, STOPPED, or ABSENT."""
    detail: str
    answers: bool | None
    """Whether it says so itself; None where there is nothing to ask."""
    where: str
    log: Path

    @property
    def well(self) -> bool:
        """Whether it does what it is for."""
        return self.state == "RUNNING" and self.answers is not False


def check_state(state: Path) -> None:
    """Refuse what supervisord's file could not name.

    Raises: ClusterError.
    """
    if not SAFE.fullmatch(str(state)):
        raise ClusterError(f"{state}: no folder for services; give --state an absolute path of letters, digits, and . _ - alone.")


def start(head: Head, *, storage: Path) -> list[Service]:
    """Have all services run, whatever of them runs already, and wait until they answer.

    Args:
        storage: the folder that all nodes see; what searches keep there is made, so that no worker makes it as another account.
    Raises: ClusterError, with the last line of the log of what does not come up.
    """
    with _folders(head, storage):
        _make_secrets(head)
        if not _runs(head.state):  # what an earlier supervisor has left answers, and nobody would start it anew
            _end_orphan(head)
            _end_group(_group_file(head))
        supervise(head.state, _programs(head))
        _wait(head)
        _open_account(head)
    return status(head)


def status(head: Head) -> list[Service]:
    """How each service stands."""
    said = _supervisor_says(head.state)
    found = []
    for program in _programs(head):
        state, detail = said.get(program.name, ("ABSENT", "supervisord does not run"))
        answers, where = None, ""
        if program.name == "postgres":
            answers, where = postgres_answers(head), str(head.sockets)
        elif program.name == "mlflow":
            answers, where = mlflow_answers(head), head.uri
        found.append(Service(program.name, state, detail, answers, where, head.logs / f"{program.name}.log"))
    return found


def stop(state: Path) -> None:
    """End all that is supervised under a folder, and the supervisor."""
    if _supervisor_says(state):
        _supervisorctl(state, "shutdown")
    end = time.monotonic() + 60
    while _runs(state) and time.monotonic() < end:
        time.sleep(0.1)


def supervise(state: Path, programs: list[Program]) -> None:
    """Have supervisord keep these programs running: start it, or tell the one that runs what has changed.

    Raises: ClusterError where it does not start.
    """
    check_state(state)
    folder, logs = state / "supervisor", state / "logs"
    for part in (folder, logs):
        make_folder(part, parents=True)
    conf = folder / "supervisord.conf"
    write_whole(conf, _configuration(state, programs))
    if _runs(state):
        _supervisorctl(state, "update")
        return
    command = [sys.executable, "-P", "-m", "supervisor.supervisord", "-c", str(conf)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=state, umask=0o077)
    if done.returncode:
        said = next(iter(reversed((done.stderr or done.stdout).strip().splitlines())), "no reason given")
        mend = "pip install 'vit_search[cluster]'" if "No module named" in said else f"see {logs / 'supervisord.log'}"
        raise ClusterError(f"supervisord did not start ({said}); {mend}.")


# --- what supervisord starts --------------------------------------------------------------------------------------------


def run_postgres(head: Head) -> None:
    """Become PostgreSQL; its data are made if there are none.

    Raises: ClusterError.
    """
    binaries = _postgres_binaries()
    if not head.database.is_dir():
        _make_database(head, binaries)
    version = (head.database / "PG_VERSION").read_text().strip()
    if (found := _major(binaries)) != version:
        raise ClusterError(
            f"{head.database}: made by PostgreSQL {version}, and {found} is installed; install {version}, or move it with pg_upgrade."
        )
    _end_orphan(head)
    options = {"listen_addresses": "", "unix_socket_directories": str(head.sockets), "unix_socket_permissions": "0700"}
    options |= {"log_min_error_statement": "panic", "max_connections": "100"}  # a statement holds what it stores, and is not for a log
    command = [str(binaries / "postgres"), "-D", str(head.database)]
    for name, value in options.items():
        command += ["-c", f"{name}={value}"]
    os.chdir(head.database)
    if os.getuid() == 0:
        account = _account()
        os.initgroups(account.pw_name, account.pw_gid)
        os.setgid(account.pw_gid)
        os.setuid(account.pw_uid)
    os.execv(command[0], command)  # noqa: S606 -- supervisord watches this process


def run_mlflow(head: Head) -> None:
    """Become MLflow's server, once PostgreSQL answers.

    Raises: ClusterError where it does not.
    """
    os.umask(0o077)
    _end_group(_group_file(head))
    write_whole(_group_file(head), str(os.getpgid(0)))
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
    os.execve(sys.executable, mlflow_command(head.port, head.state / "artifacts"), environment)  # noqa: S606 -- as above


def mlflow_command(port: int, artifacts: Path | str, *, host: str = "127.0.0.1", names: tuple[str, ...] = ()) -> list[str]:
    """How MLflow's server is started wherever accounts are asked for; names: further ones that clients call it by."""
    hosts = [f"{name}:{port}" for name in ("127.0.0.1", "localhost", *names)]
    command = [sys.executable, "-P", "-m", "mlflow", "server", "--host", host, "--port", str(port), "--workers", str(WORKERS)]
    command += ["--app-name", "basic-auth", "--artifacts-destination", str(artifacts)]
    return [*command, "--allowed-hosts", ",".join(hosts), "--cors-allowed-origins", ",".join(f"http://{host}" for host in hosts)]


def mlflow_accounts(database: str) -> list[str]:
    """Lines of the file that tells MLflow's server of its accounts: without a permission by default, not the READ that it ships.

    A password is a PBKDF2 hash, which costs the server more than a request does; one that was right is remembered.
    """
    return [
        "[mlflow]",
        "default_permission = NO_PERMISSIONS",
        f"database_uri = {database}",
        f"admin_username = {ADMIN}",
        "authorization_function = vit_search.tracking.server_app:authenticate",
        f"auth_cache_ttl_seconds = {REMEMBERED_S}",
    ]


def postgres_answers(head: Head) -> bool:
    """Whether PostgreSQL takes connections."""
    try:
        asked = [str(_postgres_binaries() / "pg_isready"), "-q", "-h", str(head.sockets)]
    except ClusterError:
        return False
    return subprocess.run(asked, capture_output=True).returncode == 0


def mlflow_answers(head: Head) -> bool:
    """Whether MLflow does."""
    try:
        with _opener.open(f"{head.uri}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except (OSError, ValueError):
        return False


# --- made once ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _folders(head: Head, storage: Path) -> Iterator[None]:
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
                shutil.chown(part, _account().pw_uid, _account().pw_gid)
        for part in (storage / "searches", storage / "cache"):
            part.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = open_to_write(head.state / "lock")
    except OSError as error:
        raise ClusterError(f"{error.filename}: cannot be made ({error.strerror}); mount the disk, or name a folder with --state.") from None
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _make_secrets(head: Head) -> None:
    for name in ("postgres_password", "mlflow_admin_password", "mlflow_search_password", "mlflow_secret_key"):
        write_private(head.secrets / name, secrets.token_urlsafe(32))
    told = {
        "MLFLOW_TRACKING_URI": head.uri,
        "MLFLOW_TRACKING_USERNAME": SEARCHES,
        "MLFLOW_TRACKING_PASSWORD": head.secret("mlflow_search_password"),
    }
    text = "".join(f"export {name}={value}\n" for name, value in told.items())  # of letters that a shell leaves alone
    place = head.secrets / "mlflow.env"
    if not place.is_file() or place.read_text(encoding="utf-8") != text:
        place.unlink(missing_ok=True)
        write_private(place, text)


def _make_database(head: Head, binaries: Path) -> None:
    """PostgreSQL's data: whole or not at all. Its superuser is the account it runs as, by its socket; MLflow's has a password."""
    fresh = head.database.with_name("data.new")
    as_account: dict[str, str | int] = {}
    if os.getuid() == 0:
        as_account = {"user": _account().pw_uid, "group": _account().pw_gid}
    superuser = _account().pw_name if as_account else _own_name()
    shutil.rmtree(fresh, ignore_errors=True)
    _made([str(binaries / "initdb"), "-D", str(fresh), "-U", superuser, "--auth=peer", "-E", "UTF8", "--no-locale"], as_account)
    rules = [f"local all {superuser} peer", "local mlflow,mlflow_auth mlflow scram-sha-256"]
    with open_to_write(fresh / "pg_hba.conf", "w") as file:
        file.write("\n".join(rules) + "\n")
    password = head.secret("postgres_password")
    statements = [f"CREATE ROLE mlflow LOGIN PASSWORD '{password}'"]
    statements += [f"CREATE DATABASE {name} OWNER mlflow" for name in ("mlflow", "mlflow_auth")]
    _made([str(binaries / "postgres"), "--single", "-D", str(fresh), "postgres"], as_account, "\n".join(statements) + "\n")
    fresh.rename(head.database)


def _own_name() -> str:
    """The name by which PostgreSQL knows this account: the system's, whatever the environment says.

    Raises: ClusterError where it has none; initdb would refuse it, too.
    """
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        raise ClusterError(
            f"uid {os.getuid()} has no name on this machine, and PostgreSQL needs one; add it to /etc/passwd, or start the head as root."
        ) from None


def _made(command: list[str], as_account: Mapping[str, str | int], said: str = "") -> None:
    done = subprocess.run(command, input=said, capture_output=True, text=True, cwd="/", **as_account)  # type: ignore[call-overload]
    if done.returncode:
        why = next(iter(reversed(done.stderr.strip().splitlines())), "no reason given")
        raise ClusterError(f"{Path(command[0]).name}: the database cannot be made ({why}); mend that, then run `vit-search cluster head`.")


def _open_account(head: Head) -> None:
    """The account of searches, if MLflow has none.

    Raises: ClusterError where MLflow refuses.
    """
    asked = {"username": SEARCHES, "password": head.secret("mlflow_search_password")}
    request = urllib.request.Request(  # noqa: S310 -- http on 127.0.0.1
        f"{head.uri}/api/2.0/mlflow/users/create",
        method="POST",
        data=json.dumps(asked).encode(),
        headers={"Content-Type": "application/json", "Authorization": basic(ADMIN, head.secret("mlflow_admin_password"))},
    )
    try:
        _opener.open(request, timeout=60).close()
    except urllib.error.HTTPError as error:
        said = error.read(2000).decode("utf-8", "replace")
        if "RESOURCE_ALREADY_EXISTS" not in said:
            mend = "the admin's password was changed in MLflow: write the new one to that file" if error.code == 401 else "see its log"
            raise ClusterError(f"MLflow did not open the account of searches ({error.code}); {mend}.") from None
    except OSError as error:
        raise ClusterError(f"MLflow did not open the account of searches ({error}); see {head.logs / 'mlflow.log'}.") from None


def basic(user: str, password: str) -> str:
    """The header of an account."""
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


# --- supervisord --------------------------------------------------------------------------------------------------------


def _programs(head: Head) -> list[Program]:
    where = ("--state", str(head.state), "--port", str(head.port))
    return [
        Program("postgres", (*vit_search(), "cluster", "serve", "postgres", *where), stop="INT", first=1),
        Program("mlflow", (*vit_search(), "cluster", "serve", "mlflow", *where), first=2),
        Program("keeper", (*vit_search(), "cluster", "keep"), first=3),
    ]


def vit_search() -> tuple[str, ...]:
    """How this very installation's command is called."""
    return (str(Path(sys.executable).with_name("vit-search")),)


def _configuration(state: Path, programs: list[Program]) -> str:
    lines = [
        "[supervisord]",
        f"logfile={state}/logs/supervisord.log",
        "logfile_maxbytes=20MB",
        "logfile_backups=3",
        f"childlogdir={state}/logs",
        f"pidfile={state}/supervisor/pid",
        "umask=077",
        *(["user=root"] if os.getuid() == 0 else []),
        "",
        "[unix_http_server]",
        f"file={state}/supervisor/socket",
        "chmod=0700",
        "",
        "[rpcinterface:supervisor]",
        "supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface",
        "",
        "[supervisorctl]",
        f"serverurl=unix://{state}/supervisor/socket",
    ]
    for program in programs:
        lines += [
            "",
            f"[program:{program.name}]",
            f"command={' '.join(program.command)}",
            f"directory={state}",
            f"priority={program.first}",
            "autostart=true",
            "autorestart=true",
            "startsecs=3",
            "startretries=1000000",
            f"stopsignal={program.stop}",
            "stopwaitsecs=60",
            "killasgroup=true",
            "redirect_stderr=true",
            f"stdout_logfile={state}/logs/{program.name}.log",
            "stdout_logfile_maxbytes=20MB",
            "stdout_logfile_backups=3",
        ]
    return "\n".join(lines) + "\n"


def _supervisorctl(state: Path, *arguments: str) -> str:
    command = [sys.executable, "-P", "-m", "supervisor.supervisorctl", "-c", str(state / "supervisor" / "supervisord.conf"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd="/").stdout


def _runs(state: Path) -> bool:
    """Whether supervisord does, by its process."""
    try:
        pid = int((state / "supervisor" / "pid").read_text())
        return "supervisord" in " ".join(psutil.Process(pid).cmdline())
    except (OSError, ValueError, psutil.Error):
        return False


def _supervisor_says(state: Path) -> dict[str, tuple[str, str]]:
    """State and detail of each program by its name; empty where supervisord does not run."""
    if not _runs(state):
        return {}
    rows = [line.split(maxsplit=2) for line in _supervisorctl(state, "status").splitlines()]
    return {row[0]: (row[1], row[2] if len(row) > 2 else "") for row in rows if len(row) > 1 and row[1].isupper()}


def _wait(head: Head) -> None:
    end = time.monotonic() + START_S
    while True:
        missing = [name for name, there in (("postgres", postgres_answers(head)), ("mlflow", mlflow_answers(head))) if not there]
        if not missing:
            return
        if time.monotonic() > end:
            log = head.logs / f"{missing[0]}.log"
            raise ClusterError(f"{missing[0]} does not answer after {START_S:.0f} s ({_last_line(log)}); see {log}.")
        time.sleep(0.5)


def _last_line(log: Path) -> str:
    with contextlib.suppress(OSError):
        for line in reversed(log.read_text(encoding="utf-8", errors="replace").splitlines()):
            if line.strip():
                return line.strip()[:200]
    return "it said nothing"


# --- PostgreSQL's and MLflow's leftovers --------------------------------------------------------------------------------


def _postgres_binaries() -> Path:
    """Folder of the newest PostgreSQL here.

    Raises: ClusterError where there is none.
    """
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[-3].partition(".")[0]))
    on_path = shutil.which("postgres")
    if found:
        return found[-1].parent
    if on_path:
        return Path(on_path).resolve().parent
    raise ClusterError("no PostgreSQL on this machine; install it, e.g. `sudo apt-get install -y postgresql`.")


def _major(binaries: Path) -> str:
    said = subprocess.run([binaries / "postgres", "--version"], capture_output=True, text=True, check=True).stdout
    return said.split()[2].partition(".")[0]


def _account() -> pwd.struct_passwd:
    try:
        return pwd.getpwnam(POSTGRES_ACCOUNT)
    except KeyError:
        raise ClusterError(
            f"PostgreSQL refuses to run as root, and there is no account {POSTGRES_ACCOUNT}; run this as an ordinary account."
        ) from None


def _end_orphan(head: Head) -> None:
    """End a PostgreSQL over the same data whose supervisor died before it."""
    try:
        process = psutil.Process(int((head.database / "postmaster.pid").read_text().split()[0]))
        if process.name() == "postgres" and str(head.database) in process.cmdline():
            process.send_signal(signal.SIGINT)
            process.wait(60)
    except (OSError, ValueError, IndexError, psutil.Error):
        return


def _end_group(kept: Path) -> None:
    """End what is left of the MLflow before this one: its workers outlive a SIGKILL of their parent, and hold the port."""
    with contextlib.suppress(OSError, ValueError):
        group = int(kept.read_text())
        members = [process for process in psutil.process_iter(["cmdline", "uids"]) if _of_group(process, group)]
        if group != os.getpgid(0) and all("mlflow" in " ".join(p.info["cmdline"] or []) for p in members if p.pid == group):
            for process in members:
                with contextlib.suppress(psutil.Error):
                    process.kill()
            psutil.wait_procs(members, 10)


def _group_file(head: Head) -> Path:
    """Where the process group of the last MLflow is written down."""
    return head.state / "mlflow.group"


def _of_group(process: psutil.Process, group: int) -> bool:
    try:
        return os.getpgid(process.pid) == group and process.info["uids"].real == os.getuid()
    except (OSError, AttributeError):
        return False
