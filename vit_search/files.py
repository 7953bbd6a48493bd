"""Writes files completely or not at all, never through links, and checks whether other accounts can change a folder."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from vit_search.errors import LinkError

OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
NOBODY = Path("/proc/sys/kernel/overflowuid")
"""File with the uid that a user namespace shows for owners that it does not know."""
ACCOUNTS = Path("/proc/self/uid_map")
ALL_ACCOUNTS = ["0", "0", "4294967295"]


def write_whole(path: Path, content: str | bytes) -> None:
    """Write to a temporary name, then rename. A link at the path is replaced, never followed.

    Raises: OSError if the folder cannot be written. An older file is then still there.
    """
    fresh = path.with_name(f"{path.name}.{uuid.uuid4().hex}.new")
    try:
        with fresh.open("xb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)


def write_private(path: Path, text: str) -> bool:
    """Write a file that only its owner can ever read. If the file exists, leave it as it is.

    Returns: whether it was written. So if two processes make a secret at once, both use the same one.
    Raises: OSError if the folder cannot be written.
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
    """Open a file for writing, as `open` does; it may exist. Text is UTF-8. Open lock files with "a", which does not empty them.

    Raises: LinkError if there is a link, or something that is not a file; OSError if it cannot be written.
    """
    return open(path, mode, encoding=None if "b" in mode else "utf-8", opener=_open)


def _open(name: str, flags: int) -> int:
    try:
        descriptor = os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)  # else it waits for the reader of a pipe
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
def locked(path: Path, waiting: Callable[[], object] | None = None) -> Iterator[None]:
    """Lock a file inside this block. Waits until nobody else holds the lock.

    Args:
        waiting: called about once a second while somebody else holds it.
    Raises: LinkError; OSError.
    """
    with open_to_write(path) as file:
        while waiting is not None and not _lock_if_free(file):
            waiting()
            time.sleep(1)
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _lock_if_free(file: IO[Any]) -> bool:
    with contextlib.suppress(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


def make_folder(path: Path, *, parents: bool = False, mode: int = 0o700) -> None:
    """Make a folder that is closed to other accounts, unless it exists.

    Args:
        mode: 0o777 gives it the rights that the umask allows instead.
    Raises: LinkError if there is a link; OSError if it cannot be made.
    """
    path.mkdir(mode=mode, parents=parents, exist_ok=True)
    if path.is_symlink():
        raise LinkError(f"{path}: a link, which is not followed for writing; remove it, or put the folder itself there.")


def open_to_others(folder: Path) -> str:
    """Why other accounts, except root, could change what is in a folder; empty if they cannot.

    Raises: OSError if the folder cannot be examined.
    """
    return _problem(folder, sticky=False)


def way_open_to_others(folder: Path) -> str:
    """Why other accounts could replace a folder inside this one by another; empty if they cannot.

    All parent folders count. A folder that all can write is allowed if its sticky bit is set, as for /tmp: then nobody can rename what
    belongs to others.

    Raises: OSError if a folder cannot be examined.
    """
    folder = folder.resolve(strict=True)
    return next((problem for part in (folder, *folder.parents) if (problem := _problem(part, sticky=True))), "")


def belongs_to_other(path: Path) -> str:
    """The account to which a file or folder belongs, if that is neither this account nor root; else empty.

    An owner that a user namespace (a container) does not know counts as this account, because nothing distinguishes them.

    Raises: OSError if it cannot be examined.
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
    """The uid that this user namespace shows for unknown accounts; None if it knows all accounts."""
    try:
        return None if ACCOUNTS.read_text().split() == ALL_ACCOUNTS else int(NOBODY.read_text())
    except (OSError, ValueError):
        return None
