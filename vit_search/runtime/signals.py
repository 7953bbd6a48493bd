"""Handles the signals that end a program, also while a library blocks, and the loss of the terminal."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import sys
import termios
import threading
from collections.abc import Callable, Iterator
from typing import Any

from vit_search.runtime import native_stderr


def ending_signals() -> list[signal.Signals]:
    """The signals that ask a program to end: SIGINT, SIGTERM, and SIGHUP (lost terminal) unless it is ignored, as under nohup."""
    heard = [signal.SIGINT, signal.SIGTERM]
    return heard if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else [*heard, signal.SIGHUP]


def leave_terminal() -> None:
    """Discard all output to the terminal from now on. Writing to a lost terminal is an error and would end the program half-way."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for number in {1, 2, native_stderr.stderr_number()}:
        if number is not None and is_terminal(number):
            os.dup2(nowhere, number)
    os.close(nowhere)


def is_terminal(number: int) -> bool:
    """Whether a file is a terminal. Unlike `isatty`, it also recognizes a lost terminal."""
    try:
        termios.tcgetattr(number)
    except termios.error as error:
        return bool(error.args[0] == errno.EIO)
    return True


unbroken = threading.Lock()
"""A thread holds this lock during work that must not be interrupted, for example while it makes the tables of a database."""

UNBROKEN_WITHIN_S = 30.0
"""How long the end of a program waits for this lock."""

SENT_AGAIN_AFTER_S = 0.05
"""Time after which `interrupting` sends a signal again whose exception Python has swallowed."""

_end: Callable[[], None] | None = None
"""Prints the last message and ends the program. The command line sets it."""


@contextlib.contextmanager
def ended_by(end: Callable[[], None]) -> Iterator[None]:
    """Allow `heard_at_once` to end this program. Without it, as in a notebook, signals keep their usual effect.

    Args:
        end: prints the last message and ends the program. It is called from another thread.
    """
    global _end
    before, _end = _end, end
    try:
        yield
    finally:
        _end = before


@contextlib.contextmanager
def heard_at_once(clean: Callable[[], None]) -> Iterator[bool]:
    """End the program at once on a signal, also while the main thread is in a library. Python's own handlers would run only later.

    Args:
        clean: called before the program ends, from another thread.
    Yields: whether signals are handled here, which `ended_by` must allow.
    """
    end = _end
    if end is None or threading.current_thread() is not threading.main_thread():
        yield False
        return
    listener, written = socket.socketpair()  # Python writes each signal's number to it, whatever the main thread does
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
        thread.join()  # if it has received a signal, this waits until it has ended the program
        listener.close()


@contextlib.contextmanager
def interrupting() -> Iterator[None]:
    """Make SIGTERM and the loss of the terminal raise KeyboardInterrupt in the main thread, as Ctrl-C does.

    Python swallows an exception that is raised inside a destructor or a callback of a weak reference. Then the signal is sent again. If the
    block ends before that, the exception is raised at its end. Further signals in the meantime count as the same one.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    theirs, main = sys.unraisablehook, threading.get_ident()
    number, waiting = signal.SIGINT, False  # the last signal, and whether it waits to be sent again

    def interrupt(heard: int, frame: Any) -> None:
        nonlocal number
        number = signal.Signals(heard)
        if number == signal.SIGHUP:
            leave_terminal()
        if not waiting:
            raise KeyboardInterrupt

    def send_again() -> None:
        nonlocal waiting
        if waiting:
            waiting = False
            signal.pthread_kill(main, number)

    def swallowed(error: Any) -> None:
        nonlocal waiting
        if not issubclass(error.exc_type, KeyboardInterrupt):
            theirs(error)
        elif not waiting:
            waiting = True
            timer = threading.Timer(SENT_AGAIN_AFTER_S, send_again)
            timer.daemon = True
            try:
                timer.start()
            except RuntimeError:  # no thread can start; the next signal is heard
                waiting = False

    with restored():
        for ending in ending_signals():
            signal.signal(ending, interrupt)
        sys.unraisablehook = swallowed
        try:
            yield
            if waiting:
                raise KeyboardInterrupt
        finally:
            waiting = False
            sys.unraisablehook = theirs


@contextlib.contextmanager
def restored() -> Iterator[None]:
    """Give the ending signals the handlers back that they had before this block."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in ending_signals()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
