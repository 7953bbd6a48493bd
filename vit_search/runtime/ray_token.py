"""The token that the processes of a Ray cluster show each other. It is made once, and only its owner can read it."""

from __future__ import annotations

import os
import secrets
import stat
from dataclasses import dataclass
from pathlib import Path

from vit_search.errors import ClusterError
from vit_search.files import write_private

PLACE = "RAY_AUTH_TOKEN_PATH"
"""Environment variable with the path of the token, if it is not in ~/.ray."""

OTHERS = stat.S_IRWXG | stat.S_IRWXO


@dataclass(frozen=True)
class Token:
    """Where the token is, and what `ensure` did."""

    path: Path
    made: bool
    mended: tuple[str, ...]
    """What was open to other accounts before `ensure` closed it."""


def token_path() -> Path:
    """The file of the token.

    Raises: ClusterError if neither the variable nor a home folder gives a path.
    """
    try:
        return Path(os.environ.get(PLACE) or Path.home() / ".ray" / "auth_token")
    except RuntimeError:
        raise ClusterError(f"this account has no home folder for Ray's token; set HOME, or name a file with {PLACE}.") from None


def is_readable() -> bool:
    """Whether there is a token that can be read."""
    try:
        return bool(read().strip())
    except ClusterError:
        return False


def ensure() -> Token:
    """Make the token if there is none. Close its file and folder to other accounts.

    Ray's own `ray get-auth-token --generate` leaves both readable by all.

    Raises: ClusterError if the token cannot be written or is empty.
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

    Raises: ClusterError if there is none.
    """
    try:
        return token_path().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise ClusterError(
            f"{token_path()}: no token can be read; make one with `vit-search cluster token`, or copy the cluster's."
        ) from None


def problem() -> str:
    """Why the token is not secret, in one line; empty if it is, or if there is none."""
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
    """The token's file, and its folder if that holds only the token."""
    return [path.parent, path] if path.parent.name == ".ray" else [path]
