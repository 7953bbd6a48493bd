"""The signals that end a program, how they are heard in time, and what becomes of a program whose terminal goes away."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import termios
import threading
from collections.abc import Callable, Iterator
from typing import Any

from vit_search.runtime import native_stderr


def ending_signals() -> list[signal.Signals]:
    """The signals that ask a program to end: Ctrl-C, SIGTERM, and the loss of its terminal unless that is ignored, as under nohup."""
    heard = [signal.SIGINT, signal.SIGTERM]
    return heard if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else [*heard, signal.SIGHUP]


def leave_terminal() -> None:
    """Print to nowhere from now on: to write to a terminal that is gone is an error, and would end the program half-way."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for number in {1, 2, native_stderr.stderr_number()}:
        if number is not None and is_terminal(number):
            os.dup2(nowhere, number)
    os.close(nowhere)


def is_terminal(number: int) -> bool:
    """Whether a file is a terminal; `isatty` says no to one that is gone."""
    try:
        termios.tcgetattr(number)
    except termios.error as error:
        return bool(error.args[0] == errno.EIO)
    return True


unbroken = threading.Lock()
"""Held by a thread while it does what must not be cut off, such as making the tables of a database."""

UNBROKEN_WITHIN_S = 30.0
"""How long the end of a program waits for that."""

_end: Callable[[], None] | None = None
"""Set by the command line: says the last words and ends the program."""


@contextlib.contextmanager
def ended_by(end: Callable[[], None]) -> Iterator[None]:
    """Allow `heard_at_once` to end this program. Without it, as in a notebook, a signal does there what it does elsewhere.

    Args:
        end: says the last words and ends the program. It is called from another thread.
    """
    global _end
    before, _end = _end, end
    try:
        yield
    finally:
        _end = before


@contextlib.contextmanager
def heard_at_once(clean: Callable[[], None]) -> Iterator[bool]:
    """End the program at once on a signal, also where the main thread waits in a library: Python's handlers would run after that.

    Args:
        clean: called before the program ends, from another thread.
    Yields: whether signals are heard here; they are where `ended_by` allows it.
    """
    end = _end
    if end is None or threading.current_thread() is not threading.main_thread():
        yield False
        return
    listener, written = socket.socketpair()  # Python writes the number of each signal there, whatever the main thread does
    written.setblocking(False)
    numbers = ending_signals()

    def listen() -> None:
        while heard := listener.recv(1):
            if heard[0] in numbers:
                if heard[0] == signal.SIGHUP:
                    leave_terminal()
                clean()
                unbroken.acquire(timeout=UNBROKEN_WITHIN_S)
                end()

    thread = threading.Thread(target=listen, name="signals", daemon=True)
    thread.start()
    before = {number: signal.signal(number, lambda *_: None) for number in numbers}
    descriptor = signal.set_wakeup_fd(written.fileno(), warn_on_full_buffer=False)
    try:
        yield True
    finally:
        signal.set_wakeup_fd(descriptor)
        for number, handler in before.items():
            signal.signal(number, handler)
        written.close()
        thread.join()  # forever where it has heard a signal: then it ends the program
        listener.close()


@contextlib.contextmanager
def interrupting() -> Iterator[None]:
    """SIGTERM and the loss of the terminal raise KeyboardInterrupt in the main thread, as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: Any) -> None:
        if number == signal.SIGHUP:
            leave_terminal()
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in ending_signals()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def ignoring(number: signal.Signals) -> Iterator[None]:
    """Hear a signal no more inside this block."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(number, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(number, before)
