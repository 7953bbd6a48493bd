"""Files that are written whole or not at all, opened where no link leads elsewhere, in folders that other accounts cannot change."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from vit_search.errors import LinkError

OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
NOBODY = Path("/proc/sys/kernel/overflowuid")
"""Whom a user namespace shows as the owner of what belongs to an account that it does not know."""
ACCOUNTS = Path("/proc/self/uid_map")
ALL_ACCOUNTS = ["0", "0", "4294967295"]


def write_whole(path: Path, content: str | bytes) -> None:
    """Write under a name that no other process takes, then rename; a link at the path is replaced, never followed.

    Raises: OSError where the folder cannot be written; an older file is then still there.
    """
    fresh = path.with_name(f"{path.name}.{uuid.uuid4().hex}.new")
    try:
        with fresh.open("xb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)


def write_private(path: Path, text: str) -> bool:
    """Write a file that its owner alone can read, from its first byte on; one that is there already stays as it is.

    Returns: whether it was written, so that of two processes that make a secret both go on with the same one.
    Raises: OSError where the folder cannot be written.
    """
    fresh = path.with_name(f"{path.name}.{uuid.uuid4().hex}.new")
    try:
        with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:  # noqa: PTH123 -- a descriptor
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.link(fresh, path)
    except FileExistsError:
        return False
    finally:
        fresh.unlink(missing_ok=True)
    return True


def open_to_write(path: Path, mode: str = "a") -> IO[Any]:
    """Open a file for writing that may be there already, as `open` does; text is UTF-8. A lock is opened with "a", which empties nothing.

    Raises: LinkError where a link or something else that is no file is there; OSError where it cannot be written.
    """
    return open(path, mode, encoding=None if "b" in mode else "utf-8", opener=_open)


def _open(name: str, flags: int) -> int:
    try:
        descriptor = os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)  # a pipe without a reader would be waited for
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise LinkError(f"{name}: a link, which is not followed for writing; remove it, or put the file itself there.") from None
        if error.errno == errno.ENXIO:
            raise LinkError(f"{name}: not a file; remove it.") from None
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise LinkError(f"{name}: not a file; remove it.")
    return descriptor


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock file, once whoever holds it lets it go.

    Raises: LinkError; OSError.
    """
    with open_to_write(path) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def make_folder(path: Path, *, parents: bool = False) -> None:
    """Make a folder that is closed to other accounts, unless one is there already.

    Raises: LinkError where a link is there; OSError where it cannot be made.
    """
    path.mkdir(mode=0o700, parents=parents, exist_ok=True)
    if path.is_symlink():
        raise LinkError(f"{path}: a link, which is not followed for writing; remove it, or put the folder itself there.")


def open_to_others(folder: Path) -> str:
    """Why accounts other than this one and root could change what lies in a folder; empty where they cannot.

    Raises: OSError where it cannot be looked at.
    """
    return _problem(folder, sticky=False)


def way_open_to_others(folder: Path) -> str:
    """Why others could put another folder in the place of one in this folder; empty where they cannot.

    All folders above it count. Others may write where the sticky bit keeps them from renaming what is not theirs, as in /tmp.

    Raises: OSError where one cannot be looked at.
    """
    folder = folder.resolve(strict=True)
    return next((problem for part in (folder, *folder.parents) if (problem := _problem(part, sticky=True))), "")


def belongs_to_other(path: Path) -> str:
    """Which account a file or folder belongs to, where that is neither this one nor root; empty where it is.

    An owner whom a user namespace (a container) does not know counts as this account: it cannot be told from it.

    Raises: OSError where it cannot be looked at.
    """
    return _owner(path, path.stat())


def _problem(folder: Path, *, sticky: bool) -> str:
    about = folder.stat()
    if about.st_mode & OTHERS_WRITE and not (sticky and about.st_mode & stat.S_ISVTX):
        return f"other accounts may write into {folder} (mode {stat.S_IMODE(about.st_mode):04o})"
    return _owner(folder, about)


def _owner(path: Path, about: os.stat_result) -> str:
    trusted = about.st_uid in (0, os.getuid()) or about.st_uid == _unknown_owner()
    return "" if trusted else f"{path} belongs to another account (uid {about.st_uid})"


def _unknown_owner() -> int | None:
    """The uid of all accounts that this user namespace does not know; None where it knows all of them."""
    try:
        return None if ACCOUNTS.read_text().split() == ALL_ACCOUNTS else int(NOBODY.read_text())
    except (OSError, ValueError):
        return None
