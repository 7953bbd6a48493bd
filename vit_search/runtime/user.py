"""The name of the account that runs this process."""

from __future__ import annotations

import getpass
import os


def user_name() -> str:
    """The user's name, or `uid-N` where the system has none: a container may run as any number (`docker run -u 12345`)."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # OSError from Python 3.13 on
        return f"uid-{os.getuid()}"
