"""The private folder of our own Ray: its sockets, logs and spilled objects.

Ray opens its folder to everybody (mode 0777). Whoever can enter it can replace Ray's sockets by others. So Ray gets a folder inside a
private one. It is removed at the end. The next start removes what a killed process left behind.
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
"""Start of the folders' names. It is short, because the path of a socket must be short."""

LOCK = "lock"
"""Lock file. The process that uses the folder holds it as long as it lives."""

SOCKET = f"{PREFIX}12345678/0/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"
LONGEST = 107 - len(f"/{SOCKET}")
"""Maximum bytes of the path that contains our folder. Linux allows 107 for the path of a socket."""


@contextlib.contextmanager
def private() -> Iterator[Path]:
    """Make a folder in `RAY_TMPDIR`, else in `TMPDIR` or /tmp, that only this account can enter.

    Raises: ClusterError if no folder is suitable.
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
    """Make a folder and lock it. The lock file gets its name when it is locked, so that nobody finds it unlocked."""
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
    """The existing folder in which ours will be made.

    Raises: ClusterError.
    """
    if named := os.environ.get("RAY_TMPDIR"):
        if problem := _problem(Path(named)):
            raise ClusterError(f"RAY_TMPDIR={named}: {problem}; name another folder.")
        return Path(named).resolve()
    reasons = []
    for name in dict.fromkeys([os.environ.get("TMPDIR") or "/tmp", "/tmp", "/var/tmp"]):  # noqa: S108 -- our folders there are private
        if not (problem := _problem(Path(name))):
            return Path(name).resolve()
        reasons.append(f"{name}: {problem}")
    raise ClusterError(f"Ray finds no folder for its sockets ({'; '.join(reasons)}); name one with RAY_TMPDIR.")


def _problem(path: Path) -> str:
    """Why our folder cannot be made in this one, or would not be safe from other accounts; empty if it can."""
    try:
        path = path.resolve(strict=True)
        if (length := len(os.fsencode(path))) > LONGEST:
            return f"its path has {length} bytes, and a socket's path leaves room for {LONGEST}"
        return way_open_to_others(path) or ("" if os.access(path, os.W_OK | os.X_OK) else "it cannot be written")
    except OSError as error:
        return (error.strerror or str(error)).lower()


def _remove_leftovers(parent: Path) -> None:
    """Remove the folders of this account's dead processes."""
    for folder in parent.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError, LinkError):
            about = folder.lstat()
            if stat.S_ISDIR(about.st_mode) and about.st_uid == os.getuid():
                with open_to_write(folder / LOCK, "r+") as lock:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(folder, ignore_errors=True)
