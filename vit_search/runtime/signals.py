"""What becomes of a program whose terminal goes away, as when a connection by ssh is lost."""

from __future__ import annotations

import errno
import os
import signal
import termios


def ending_signals() -> list[signal.Signals]:
    """The signals that ask a program to end: Ctrl-C, SIGTERM, and the loss of its terminal unless that is ignored, as under nohup."""
    heard = [signal.SIGINT, signal.SIGTERM]
    return heard if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else [*heard, signal.SIGHUP]


def leave_terminal() -> None:
    """Print to nowhere from now on: to write to a terminal that is gone is an error, and would end the program half-way."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for number in (1, 2):
        if is_terminal(number):
            os.dup2(nowhere, number)
    os.close(nowhere)


def is_terminal(number: int) -> bool:
    """Whether a file is a terminal; `isatty` says no to one that is gone."""
    try:
        termios.tcgetattr(number)
    except termios.error as error:
        return bool(error.args[0] == errno.EIO)
    return True
