"""The command line, as a process of its own. The fixture `command` runs it in the tests' process."""

import os
import subprocess
import sys
from pathlib import Path

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
