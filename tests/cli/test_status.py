"""What `vit-search status` says of a search."""

import pytest

from vit_search.cli.status import held_text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (1, "1 trial of them waits, without a process, until stopping.kind pasha lets it go on"),
        (2, "2 trials of them wait, without a process, until stopping.kind pasha lets them go on"),
    ],
)
def test_trials_that_wait_are_told_in_good_grammar(count, text):
    assert held_text(count, "pasha") == text
