"""What an interrupted promotion says."""

import signal

import pytest

from vit_search.cli.promotion_steps import promotion_steps
from vit_search.promotion.promote import READING, REGISTERING


@pytest.mark.parametrize(
    ("steps", "kept", "stands"),
    [
        ([], False, "The test split was not read."),
        (["measuring its costs and its exports"], False, "The test split was not read."),
        ([READING], False, "This reading of the test split may count already; the next call reads it again."),
        ([READING], True, "The answers on the test split are kept: it is not read again."),
        ([READING, REGISTERING], True, "The champion may have moved already: the next call finishes or undoes the move."),
    ],
)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_says_what_stands_and_what_to_type(number, steps, kept, stands, tmp_path, capfd):
    before = signal.getsignal(number)
    (tmp_path / "readings").mkdir()
    (tmp_path / "readings/earlier.json").write_text("{}")
    with pytest.raises(SystemExit) as left, promotion_steps(tmp_path, "digits-1") as say:
        for step in steps:
            say(step)
        if kept:
            (tmp_path / "readings/new.json").write_text("{}")
        signal.raise_signal(number)
    assert left.value.code == 130
    assert capfd.readouterr().err == f"\nInterrupted. {stands} Go on with the same options:  vit-search promote digits-1\n"
    assert signal.getsignal(number) == before
