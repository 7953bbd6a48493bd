"""The token that each process of a Ray cluster shows to the others: made once, and readable by its owner alone."""

from __future__ import annotations

import os
import secrets
import stat
from dataclasses import dataclass
from pathlib import Path

from vit_search.errors import ClusterError
from vit_search.files import write_private

PLACE = "RAY_AUTH_TOKEN_PATH"
"""The variable by which Ray, and this room, look for the token elsewhere than in ~/.ray."""

OTHERS = stat.S_IRWXG | stat.S_IRWXO


@dataclass(frozen=True)
class Token:
    """Where a token lies, and what was done to it."""

    path: Path
    made: bool
    mended: tuple[str, ...]
    """What was open to others, and is no more."""


def token_path() -> Path:
    """The token's file.

    Raises: ClusterError where neither the variable nor a home folder names one.
    """
    try:
        return Path(os.environ.get(PLACE) or Path.home() / ".ray" / "auth_token")
    except RuntimeError:
        raise ClusterError(f"this account has no home folder for Ray's token; set HOME, or name a file with {PLACE}.") from None


def is_readable() -> bool:
    """Whether a token can be read."""
    try:
        return bool(read().strip())
    except ClusterError:
        return False


def ensure() -> Token:
    """Make the token if there is none, and close its file and folder to others.

    Ray's own `ray get-auth-token --generate` leaves both readable by all.

    Raises: ClusterError where it cannot be written, or is empty.
    """
    path = token_path()
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        made = write_private(path, secrets.token_hex(32))
        mended = []
        for part in _ours(path):
            mode = stat.S_IMODE(part.stat().st_mode)
            if mode & OTHERS:
                part.chmod(mode & ~OTHERS)
                mended.append(f"{part}: mode {mode:04o} is now {mode & ~OTHERS:04o}")
    except OSError as error:
        raise ClusterError(
            f"{path}: the token cannot be written ({error.strerror}); mend the folder, or name a file with {PLACE}."
        ) from None
    if not read().strip():
        raise ClusterError(f"{path}: the token is empty; remove the file and run `vit-search cluster token` again.")
    return Token(path, made, tuple(mended))


def read() -> str:
    """The token.

    Raises: ClusterError where there is none.
    """
    try:
        return token_path().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise ClusterError(
            f"{token_path()}: no token can be read; make one with `vit-search cluster token`, or copy the cluster's."
        ) from None


def problem() -> str:
    """Why the token is no secret, in one line; empty where it is one, or where there is none."""
    try:
        path = token_path()
    except ClusterError:
        return ""
    for part in _ours(path):
        try:
            about = part.stat()
        except OSError:
            continue
        if about.st_mode & OTHERS:
            return f"{part}: mode {stat.S_IMODE(about.st_mode):04o} opens a token to others; close it with `vit-search cluster token`."
        if about.st_uid != os.getuid():
            return f"{part}: it belongs to another account, which can change the token; make one of your own with {PLACE}."
    return ""


def _ours(path: Path) -> list[Path]:
    """The file, and its folder where that is for the token alone."""
    return [path.parent, path] if path.parent.name == ".ray" else [path]
