"""PostgreSQL and MLflow's server as the tests and the benchmark of the record start them: real, on 127.0.0.1, ended at the end."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

POSTGRES = next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))), None) or shutil.which("postgres")
SECRET = "s3cret-Of-The-Test"


def until(condition, seconds=1800):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


class Postgres:
    """PostgreSQL over a folder of its own; `uri` has its password."""

    def __init__(self, account, home):
        self._port = free_port()
        self._command = [*account, Path(POSTGRES).resolve(), "-D", home / "data", "-p", str(self._port), "-h", "127.0.0.1", "-k", home]
        self.uri = f"postgresql://keeper:{SECRET}@127.0.0.1:{self._port}/postgres"

    def start(self):
        self._process = subprocess.Popen(self._command, stderr=subprocess.DEVNULL, cwd="/", start_new_session=True)
        until(self._answers)

    def end(self, how=signal.SIGINT):
        """SIGINT: as its administrator does; SIGQUIT: at once, as a crash does."""
        os.killpg(self._process.pid, how)
        self._process.wait()

    def _answers(self):
        assert self._process.poll() is None
        with socket.socket() as tried:
            return tried.connect_ex(("127.0.0.1", self._port)) == 0


@contextlib.contextmanager
def postgres_server():
    """A PostgreSQL of our own that runs; it refuses to run as root, so another account does."""
    account = ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []
    home = Path(subprocess.run([*account, "mktemp", "-d"], capture_output=True, text=True, check=True, cwd="/").stdout.strip())
    with tempfile.NamedTemporaryFile("w") as password:
        password.write(SECRET)
        password.flush()
        Path(password.name).chmod(0o644)
        initdb = [Path(POSTGRES).resolve().parent / "initdb", "-D", home / "data", "-U", "keeper", "--auth=scram-sha-256"]
        subprocess.run([*account, *initdb, f"--pwfile={password.name}", "-E", "UTF8"], check=True, capture_output=True, cwd="/")
    server = Postgres(account, home)
    server.start()
    try:
        yield server
    finally:
        server.end()
        shutil.rmtree(home, ignore_errors=True)


@contextlib.contextmanager
def postgres():
    """The URI of a PostgreSQL of our own, its password included."""
    with postgres_server() as server:
        yield server.uri


def start(command, home, port, *, health="health", **environment):
    """A server in a process group of its own, once it answers on its port; what it says is in `log` under home."""
    with (home / "log").open("ab") as log:
        process = subprocess.Popen(command, cwd=home, env=os.environ | environment, stdout=log, stderr=log, start_new_session=True)

    def answers():
        assert process.poll() is None, (home / "log").read_text()
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/{health}", timeout=2) as answer:
                return answer.status == 200
        except OSError:
            return False

    until(answers)
    return process


def end(process):
    """Kill a server with all of its processes, if it still runs."""
    if process is not None and process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def start_mlflow(home, store, port, *options, **environment):
    """MLflow's server with artifact proxy over a store, once it answers."""
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1", *options]
    command += ["--artifacts-destination", str(home / "served")]
    secret = {"MLFLOW_BACKEND_STORE_URI": store, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # a password is no argument
    return start(command, home, port, **secret, **environment)


@contextlib.contextmanager
def mlflow_server(home, store, *options, **environment):
    """Its URI, for as long as the context lasts."""
    port = free_port()
    process = start_mlflow(home, store, port, *options, **environment)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        end(process)
