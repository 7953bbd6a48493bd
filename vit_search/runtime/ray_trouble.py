"""Finds out why our own Ray cannot start on this machine, and how to fix it: before Ray starts, and after it failed."""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path

import psutil

from vit_search.errors import ClusterError

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 -- Ray's object store is a file there
NEEDED_BYTES = 1 << 30
"""Memory of Ray's daemons and one worker without torch: 0.7 GiB on Linux with Ray 2.60."""

CRITICAL = re.compile(r"^\[[^]]* [CF] \d+ \d+\] *(?:\(\w+\) *)?(.*)", re.MULTILINE)
"""A log line with which a Ray daemon says why it ends, e.g. `[2026-01-01 00:00:00,000 C 12 13] (raylet) …`."""

BEFORE_REASON = re.compile(r"(?:\w+\.cc:\d+:\s*)?An unexpected system state has occurred\..*? fix it\.\s*")
"""What Ray writes before such a reason: its line of code, and that it is a bug in Ray. On a busy machine, it is not."""


def check() -> None:
    """Check that Ray can start on this machine. Otherwise Ray would wait for minutes, three times, and not say why.

    Raises: ClusterError, one line.
    """
    try:
        with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()[:2], timeout=5):
            pass
    except OSError as error:
        raise ClusterError(f"127.0.0.1 cannot be reached ({error.strerror or error}), and Ray needs it; try `ip link set lo up`.") from None
    if not (SHARED_MEMORY.is_dir() and os.access(SHARED_MEMORY, os.W_OK | os.X_OK)):
        raise ClusterError(f"{SHARED_MEMORY} cannot be written, and Ray keeps objects there; mount it as a tmpfs of mode 1777.")


def reason_in_log(folder: Path) -> str:
    """Why a Ray daemon ended itself, from its log; empty if none did."""
    for path in sorted(folder.glob("session_2*/logs/*.err")):
        if match := CRITICAL.search(path.read_text(errors="replace")):
            return f"{path.stem}: {BEFORE_REASON.sub('', match.group(1)).strip()}"
    return ""


def kills() -> int:
    """Number of processes that Linux has killed since the machine started because memory ran out."""
    counted = re.search(r"^oom_kill (\d+)", Path("/proc/vmstat").read_text(), re.MULTILINE)
    return int(counted.group(1)) if counted else 0


def shortage(killed: int) -> str:
    """What this machine has too little of, and how to fix it.

    Args:
        killed: processes that Linux has killed meanwhile.
    """
    free, load, cores = psutil.virtual_memory().available, os.getloadavg()[0], os.cpu_count() or 1
    if killed or free < NEEDED_BYTES:
        evidence = "Linux ended a process for want of memory" if killed else f"{free >> 20:,} MiB of memory are free"
        return f"{evidence}, and Ray needs about {NEEDED_BYTES >> 20:,} MiB: end other programs, or raise the container's limit"
    if load > 2 * cores:
        return f"{load:.0f} processes wait for {cores} processor{'s' * (cores > 1)}: end some of them, or try again later"
    return "neither memory nor processors are short: try again, and report it with the version of Ray if it stays so"
