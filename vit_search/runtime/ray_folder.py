"""The folder of a Ray of our own: its sockets, logs and spilled objects, closed to every other account of this machine.

Ray opens the folder that it is given to everybody (mode 0777). Whoever may enter it can put a socket of their own in the place of Ray's,
so Ray gets a folder inside of one that is private. It is removed at the end; the next start removes what a killed process left behind.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from vit_search.errors import ClusterError, LinkError
from vit_search.files import open_to_write, way_open_to_others

PREFIX = "vs-ray-"
"""Of the folders' names; short, as the path of a socket is."""

LOCK = "lock"
"""Held by the process that uses the folder, for as long as it lives."""

SOCKET = f"{PREFIX}12345678/0/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"
LONGEST = 107 - len(f"/{SOCKET}")
"""Bytes that are left for the path of the folder around ours: Linux takes 107 for a socket's."""


@contextlib.contextmanager
def private() -> Iterator[Path]:
    """A new folder in `RAY_TMPDIR`, else in `TMPDIR` or /tmp, that this account alone can enter.

    Raises: ClusterError where no folder will do.
    """
    parent = around()
    _remove_leftovers(parent)
    folder, lock = _make(parent)
    with lock:
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _make(parent: Path) -> tuple[Path, IO[str]]:
    """A folder and its lock, which is made under another name so that nobody finds it free."""
    folder = None
    try:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
        lock = open_to_write(folder / f"{LOCK}.new")
        fcntl.flock(lock, fcntl.LOCK_EX)
        (folder / f"{LOCK}.new").rename(folder / LOCK)
        return folder, lock
    except OSError as error:
        if folder:
            shutil.rmtree(folder, ignore_errors=True)
        raise ClusterError(
            f"{parent}: Ray's folder cannot be made there ({error.strerror}); make room, or name another with RAY_TMPDIR."
        ) from None


def around() -> Path:
    """The folder in which ours is made; nothing is made yet.

    Raises: ClusterError.
    """
    if named := os.environ.get("RAY_TMPDIR"):
        if problem := _problem(Path(named)):
            raise ClusterError(f"RAY_TMPDIR={named}: {problem}; name another folder.")
        return Path(named).resolve()
    reasons = []
    for name in dict.fromkeys([os.environ.get("TMPDIR") or "/tmp", "/tmp", "/var/tmp"]):  # noqa: S108 -- private folders are made there
        if not (problem := _problem(Path(name))):
            return Path(name).resolve()
        reasons.append(f"{name}: {problem}")
    raise ClusterError(f"Ray finds no folder for its sockets ({'; '.join(reasons)}); name one with RAY_TMPDIR.")


def _problem(path: Path) -> str:
    """Why a folder cannot hold ours, or would let others put another in its place; empty where it will do."""
    try:
        path = path.resolve(strict=True)
        if (length := len(os.fsencode(path))) > LONGEST:
            return f"its path has {length} bytes, and a socket's path leaves room for {LONGEST}"
        return way_open_to_others(path) or ("" if os.access(path, os.W_OK | os.X_OK) else "it cannot be written")
    except OSError as error:
        return (error.strerror or str(error)).lower()


def _remove_leftovers(parent: Path) -> None:
    """Remove the folders of processes of ours that are dead."""
    for folder in parent.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError, LinkError):
            about = folder.lstat()
            if stat.S_ISDIR(about.st_mode) and about.st_uid == os.getuid():
                with open_to_write(folder / LOCK, "r+") as lock:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(folder, ignore_errors=True)
