"""The name of the account that runs this process."""

from __future__ import annotations

import getpass
import os


def user_name() -> str:
    """The user's name, or `uid-N` if the system has none: a container may run with any number (`docker run -u 12345`)."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # OSError since Python 3.13
        return f"uid-{os.getuid()}"
