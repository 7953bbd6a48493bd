"""Signals that end a program, at bad moments."""

import signal
import time
import weakref

import pytest

from vit_search.runtime.signals import interrupting, restored


class Thing:
    """Something that a weak reference can point to."""


def test_a_signal_during_the_callback_of_a_weak_reference_ends_the_program_all_the_same(capfd):
    thing = Thing()
    callback = weakref.ref(thing, lambda _: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(KeyboardInterrupt), interrupting():
        del thing  # Python swallows what the callback raises
        time.sleep(60)
    assert callback() is None
    assert capfd.readouterr().err == ""


def test_handlers_are_given_back():
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    with restored(), interrupting():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    assert before == {number: signal.getsignal(number) for number in before}
