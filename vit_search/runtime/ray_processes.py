"""Ends what a start of Ray has left: the processes whose command line names the folder of this Ray, and their children."""

from __future__ import annotations

import os
from pathlib import Path

import psutil

ROUNDS = 5
"""How often it looks again: a daemon may start another one meanwhile."""

GONE_WITHIN_S = 2.0
"""How long it waits in each round until the killed processes are gone."""


def end(folder: Path) -> None:
    """Kill the Ray that runs in a folder. No other Ray has this folder, so only processes that were started for it end."""
    for _ in range(ROUNDS):
        found = running_in(folder)
        if not found:
            return
        for process in found:
            try:
                process.kill()
            except psutil.Error:
                continue
        psutil.wait_procs(found, timeout=GONE_WITHIN_S)


def running_in(folder: Path) -> list[psutil.Process]:
    """The processes of the Ray in a folder; those that have ended and that nobody has waited for yet do not count."""
    daemons = [process for process in psutil.process_iter(["cmdline", "uids"]) if _is_daemon(process, f"{folder}/")]
    found = {process.pid: process for process in daemons}
    for daemon in daemons:
        try:
            found |= {child.pid: child for child in daemon.children(recursive=True)}
        except psutil.Error:
            continue
    return [process for process in found.values() if _lives(process)]


def _is_daemon(process: psutil.Process, folder: str) -> bool:
    """Whether a process is a program of Ray's that was given the folder. An editor that shows a log of Ray's is none."""
    words, uids = process.info["cmdline"] or [], process.info["uids"]
    mine = uids is not None and uids.real == os.getuid() and process.pid != os.getpid()
    return mine and any("/ray/" in word for word in words[:5]) and any(folder in word for word in words)


def _lives(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False
