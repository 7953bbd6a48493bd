"""The command line: as a process of its own, where the process is the point, or in this process, which is quicker by seconds."""

import os
import subprocess
import sys
from pathlib import Path

from vit_search import cli

COMMAND = str(Path(sys.executable).with_name("vit-search"))


def vit_search(folder, *words, code=0, before=(), timeout=600, **environment):
    """Run a command in a folder, and see that it ends with this exit code; None for any.

    Args:
        before: words in front of the command, such as those of a shell.
        environment: variables besides those of the tests.
    """
    around = os.environ | environment
    done = subprocess.run([*before, COMMAND, *map(str, words)], cwd=folder, env=around, capture_output=True, text=True, timeout=timeout)
    assert code is None or done.returncode == code, done.stdout + done.stderr
    return done


def in_process(*words):
    """Run a command in this process and in the current folder; what it prints is for capsys or capfd.

    Returns: its exit code.
    """
    before = sys.argv
    sys.argv = ["vit-search", *map(str, words)]
    try:
        cli.main()
    except SystemExit as left:
        return left.code or 0
    finally:
        sys.argv = before
    return 0
