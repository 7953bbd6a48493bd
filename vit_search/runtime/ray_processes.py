"""Ends the processes of a failed start of Ray: those with Ray's folder in their command line, and their children."""

from __future__ import annotations

import os
from pathlib import Path

import psutil

ROUNDS = 5
"""How often to look for processes. A daemon may start another one meanwhile."""

GONE_WITHIN_S = 2.0
"""How long to wait in each round for the killed processes to end."""


def end(folder: Path) -> None:
    """Kill the Ray that runs in a folder. No other Ray uses this folder, so no other process is affected."""
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
    """The processes of the Ray in a folder, without zombies."""
    daemons = [process for process in psutil.process_iter(["cmdline", "uids"]) if _is_daemon(process, f"{folder}/")]
    found = {process.pid: process for process in daemons}
    for daemon in daemons:
        try:
            found |= {child.pid: child for child in daemon.children(recursive=True)}
        except psutil.Error:
            continue
    return [process for process in found.values() if _lives(process)]


def _is_daemon(process: psutil.Process, folder: str) -> bool:
    """Whether a process is a program of Ray that uses the folder. An editor that shows one of Ray's logs is not."""
    words, uids = process.info["cmdline"] or [], process.info["uids"]
    mine = uids is not None and uids.real == os.getuid() and process.pid != os.getpid()
    return mine and any("/ray/" in word for word in words[:5]) and any(folder in word for word in words)


def _lives(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False
