"""The command line: in this process, which is quicker by seconds, or as a process of its own, where the process is the point."""

import contextlib
import io
import logging
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from vit_search import cli

COMMAND = str(Path(sys.executable).with_name("vit-search"))


@dataclass(frozen=True)
class Done:
    """A command that has ended."""

    returncode: int
    stdout: str
    stderr: str


def vit_search(folder, *words, code=0, **environment):
    """Run a command in this process, as if it were typed in a folder, and check its exit code.

    Args:
        code: the exit code that it must end with; None for any.
        environment: variables besides those of the tests.
    """
    out, err = io.StringIO(), io.StringIO()
    folder_before, environment_before, words_before = Path.cwd(), dict(os.environ), sys.argv
    os.chdir(folder)
    os.environ.update(environment)
    sys.argv = ["vit-search", *map(str, words)]
    returncode = 0
    logging.getLogger().addHandler(logging.lastResort)  # warnings go to stderr, as in a process, where pytest has no handlers
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            cli.main()
    except SystemExit as left:
        returncode = left.code or 0
    finally:
        logging.getLogger().removeHandler(logging.lastResort)
        sys.argv = words_before
        os.environ.clear()
        os.environ.update(environment_before)
        os.chdir(folder_before)
    done = Done(returncode, out.getvalue(), err.getvalue())
    assert code is None or done.returncode == code, done.stdout + done.stderr
    return done


def vit_search_process(folder, *words, code=0, before=(), timeout=1800, **environment):
    """Run a command in a process of its own, which searches and signals need, and check its exit code.

    Args:
        code: the exit code that it must end with; None for any.
        before: words in front of the command, such as those of a shell.
        environment: variables besides those of the tests.
    """
    around = os.environ | environment
    done = subprocess.run([*before, COMMAND, *map(str, words)], cwd=folder, env=around, capture_output=True, text=True, timeout=timeout)
    assert code is None or done.returncode == code, done.stdout + done.stderr
    return done
