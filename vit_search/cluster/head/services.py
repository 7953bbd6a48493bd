"""Starts and checks the services of a head: PostgreSQL, MLflow and the keeper of searches.

supervisord keeps them running. Their state folder is on a disk of the head, never on shared storage, where the locks of a database do
not work. PostgreSQL listens on a socket file only; MLflow on 127.0.0.1 only, and only for accounts.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from pathlib import Path

from vit_search.cluster.head.folders import HeadServices, locked_folders, make_secrets
from vit_search.cluster.head.mlflow_server import end_group, group_file, mlflow_answers, open_account
from vit_search.cluster.head.postgres import end_orphan, postgres_answers
from vit_search.cluster.head.supervisor import Program, is_running, program_states, supervise, vit_search_command
from vit_search.errors import ClusterError

START_S = 240.0


@dataclass(frozen=True)
class Service:
    """The current state of one service."""

    name: str
    state: str
    """supervisord's word: RUNNING, STARTING, BACKOFF, FATAL or STOPPED; or ABSENT."""
    detail: str
    answers: bool | None
    """Whether the service answers; None if it cannot be asked."""
    where: str
    log: Path

    @property
    def well(self) -> bool:
        """Whether the service works."""
        return self.state == "RUNNING" and self.answers is not False


def start(head: HeadServices, *, storage: Path) -> list[Service]:
    """Start all services that do not run yet, and wait until they answer.

    Args:
        storage: the folder that all nodes share. Its folders for searches are made here, so that no worker makes them as another account.
    Raises: ClusterError, with the last line of the log, if a service does not come up.
    """
    with locked_folders(head, storage):
        make_secrets(head)
        if not is_running(head.state):  # without a supervisor, leftover services may answer, but nobody would restart them
            end_orphan(head)
            end_group(group_file(head))
        supervise(head.state, _programs(head))
        _wait(head)
        open_account(head)
    return status(head)


def status(head: HeadServices) -> list[Service]:
    """The current state of each service."""
    states = program_states(head.state)
    services = []
    for program in _programs(head):
        state, detail = states.get(program.name, ("ABSENT", "supervisord does not run"))
        answers, where = None, ""
        if program.name == "postgres":
            answers, where = postgres_answers(head), str(head.sockets)
        elif program.name == "mlflow":
            answers, where = mlflow_answers(head), head.uri
        services.append(Service(program.name, state, detail, answers, where, head.logs / f"{program.name}.log"))
    return services


def _programs(head: HeadServices) -> list[Program]:
    where = ("--state", str(head.state), "--port", str(head.port))
    return [
        Program("postgres", (*vit_search_command(), "cluster", "serve", "postgres", *where), stop="INT", first=1),
        Program("mlflow", (*vit_search_command(), "cluster", "serve", "mlflow", *where), first=2),
        Program("keeper", (*vit_search_command(), "cluster", "keep"), first=3),
    ]


def _wait(head: HeadServices) -> None:
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
