"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import stat
import uuid
from pathlib import Path


def write_whole(path: Path, text: str) -> None:
    """Write under a name that no other process takes, then rename.

    Raises: OSError where the folder cannot be written; an older file is then still there.
    """
    fresh = path.with_name(f"{path.name}.{uuid.uuid4().hex}.new")
    try:
        fresh.write_text(text, encoding="utf-8")
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


def open_to_others(folder: Path) -> str | None:
    """Why accounts other than this one and root could change what lies in a folder, and what closes it; None where they cannot.

    Raises: OSError where it cannot be looked at.
    """
    found = folder.stat()
    if found.st_uid not in (os.getuid(), 0):
        return f"it belongs to another account (uid {found.st_uid}); use one of your own, or chown it"
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return f"mode {stat.S_IMODE(found.st_mode):04o} lets others write into it; chmod go-w"
    return None
