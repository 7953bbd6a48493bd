"""Signals that end a program, at bad moments."""

import signal
import time
import weakref

import pytest

from vit_search.runtime import signals
from vit_search.runtime.signals import SENT_AGAIN_AFTER_S, interrupting, restored


class Thing:
    """Something that a weak reference can point to."""


def lose(number):
    """Raise a signal in the callback of a weak reference, where Python swallows the exception that it causes."""
    thing = Thing()
    callback = weakref.ref(thing, lambda _: signal.raise_signal(number))
    del thing
    assert callback() is None


def test_a_signal_during_the_callback_of_a_weak_reference_ends_the_program_all_the_same(capfd):
    with pytest.raises(KeyboardInterrupt), interrupting():
        lose(signal.SIGTERM)
        time.sleep(60)
    assert capfd.readouterr().err == ""


def test_a_signal_that_python_swallows_just_before_the_end_of_a_block_is_raised_there():
    went_on = False
    with interrupting():
        with pytest.raises(KeyboardInterrupt), interrupting():
            lose(signal.SIGINT)
        went_on = True
        time.sleep(3 * SENT_AGAIN_AFTER_S)  # so it has not been sent again
    assert went_on


def test_a_second_signal_soon_after_one_that_python_swallows_does_not_cut_the_end_of_the_program_short(capfd):
    cleaned = False
    with pytest.raises(KeyboardInterrupt), interrupting():
        try:
            lose(signal.SIGTERM)
            lose(signal.SIGTERM)
            signal.raise_signal(signal.SIGTERM)
            time.sleep(60)
        finally:
            time.sleep(3 * SENT_AGAIN_AFTER_S)
            cleaned = True
    assert cleaned
    assert capfd.readouterr().err == ""


def test_the_same_signal_is_sent_again_since_another_handler_may_tell_them_apart(monkeypatch):
    monkeypatch.setattr(signals, "SENT_AGAIN_AFTER_S", 2.0)  # time to set that handler
    heard = []
    with interrupting():
        lose(signal.SIGTERM)
        with restored():
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, lambda number, _: heard.append(number))
            until = time.monotonic() + 60
            while not heard and time.monotonic() < until:
                time.sleep(0.01)
    assert heard == [signal.SIGTERM]


def test_handlers_are_given_back():
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    with restored(), interrupting():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    assert before == {number: signal.getsignal(number) for number in before}
