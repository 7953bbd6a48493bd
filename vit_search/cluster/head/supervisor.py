"""supervisord, which keeps programs running: writes its configuration, starts it and stops it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from vit_search.cluster.head.folders import check_state
from vit_search.errors import ClusterError
from vit_search.files import make_folder, write_whole


@dataclass(frozen=True)
class Program:
    """A command that supervisord keeps running."""

    name: str
    command: tuple[str, ...]
    stop: str = "TERM"
    """The signal that ends it cleanly."""
    first: int = 10
    """supervisord starts low numbers first and stops them last."""


def vit_search_command() -> tuple[str, ...]:
    """The command `vit-search` of this installation."""
    return (str(Path(sys.executable).with_name("vit-search")),)


def stop(state: Path) -> None:
    """Stop supervisord and all programs that it runs for this state folder."""
    if program_states(state):
        _supervisorctl(state, "shutdown")
    end = time.monotonic() + 60
    while is_running(state) and time.monotonic() < end:
        time.sleep(0.1)


def supervise(state: Path, programs: list[Program]) -> None:
    """Make supervisord run these programs. If it already runs, it reads the new configuration.

    Raises: ClusterError if supervisord does not start.
    """
    check_state(state)
    folder, logs = state / "supervisor", state / "logs"
    for part in (folder, logs):
        make_folder(part, parents=True)
    conf = folder / "supervisord.conf"
    write_whole(conf, _configuration(state, programs))
    if is_running(state):
        _supervisorctl(state, "update")
        return
    command = [sys.executable, "-P", "-m", "supervisor.supervisord", "-c", str(conf)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=state, umask=0o077)
    if done.returncode:
        reason = next(iter(reversed((done.stderr or done.stdout).strip().splitlines())), "no reason given")
        mend = "pip install 'vit_search[cluster]'" if "No module named" in reason else f"see {logs / 'supervisord.log'}"
        raise ClusterError(f"supervisord did not start ({reason}); {mend}.")


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


def is_running(state: Path) -> bool:
    """Whether supervisord runs. This looks at its process."""
    try:
        pid = int((state / "supervisor" / "pid").read_text())
        return "supervisord" in " ".join(psutil.Process(pid).cmdline())
    except (OSError, ValueError, psutil.Error):
        return False


def program_states(state: Path) -> dict[str, tuple[str, str]]:
    """State and detail of each program, by name; empty if supervisord does not run."""
    if not is_running(state):
        return {}
    rows = [line.split(maxsplit=2) for line in _supervisorctl(state, "status").splitlines()]
    return {row[0]: (row[1], row[2] if len(row) > 2 else "") for row in rows if len(row) > 1 and row[1].isupper()}
