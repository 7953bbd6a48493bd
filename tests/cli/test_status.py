"""What `vit-search status` and `vit-search logs` say of a search."""

import pytest
from helpers.synthetic import result

from vit_search.cli.status import event_lines, held_text
from vit_search.config import search_file
from vit_search.ledger.events import Ended, Proposed, Reported


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (1, "1 trial of them waits, without a process, until stopping.kind pasha lets it go on"),
        (2, "2 trials of them wait, without a process, until stopping.kind pasha lets them go on"),
    ],
)
def test_trials_that_wait_are_told_in_good_grammar(count, text):
    assert held_text(count, "pasha") == text


WAITS = "waits, without a process, until stopping.kind pasha lets it go on"


@pytest.mark.parametrize(("kind", "waiting"), [("pasha", WAITS), ("asha", "")])
def test_the_events_of_a_trial_say_when_it_begins_to_wait(kind, waiting):
    spec = search_file.parse(
        "name: t\ndata: {name: digits}\ntrials: 9\nepochs: 9\nmodel: {dim: 16, heads: 2}\n"
        f"stopping: {{kind: {kind}, grace_epochs: 1, audit_share: 0}}\n"
    )
    events = [Proposed(trial=trial, params={}, at=0.0) for trial in (0, 1)]
    events += [Reported(trial=trial, result=result(epoch, 0.2 * trial + 0.1 * epoch), at=0.0) for trial in (0, 1) for epoch in (1, 2, 3)]
    lines = [line.split("  ", 1)[1] for line in event_lines(spec, events, events, named=True)]
    assert [line.partition(",")[0] for line in lines if "epoch" not in line and "proposed" not in line] == (
        ["trial 0: waits", "trial 1: waits"] if waiting else []
    )
    first = [event for event in events if event.trial == 0]
    alone = [line.split("  ", 1)[1] for line in event_lines(spec, events, first, named=False)]
    assert len(alone) == 4 + bool(waiting)
    assert alone[-1].startswith("epoch 3: ") is not bool(waiting)
    if waiting:
        assert alone[-1] == waiting


def test_the_events_of_a_trial_say_when_it_goes_on():
    """Rungs at 1, 2, 4 and 8. Trials 0 and 1 wait at the second, until trial 2 loses there the lead that it had at the first."""
    spec = search_file.parse(
        "name: t\ndata: {name: digits}\ntrials: 9\nepochs: 16\nmodel: {dim: 16, heads: 2}\n"
        "stopping: {kind: pasha, grace_epochs: 1, reduction_factor: 2, audit_share: 0}\n"
    )
    events = [Proposed(trial=trial, params={}, at=0.0) for trial in range(3)]
    curves = {0: [0.1, 0.2], 1: [0.3, 0.4], 2: [0.5, 0.3]}
    events += [Reported(trial=trial, result=result(epoch, v), at=0.0) for trial in curves for epoch, v in enumerate(curves[trial], 1)]
    events += [Ended(trial=trial, outcome="stopped", at=0.0) for trial in (0, 2)]
    lines = [line.split("  ", 1)[1] for line in event_lines(spec, events, events, named=True)]
    assert [line for line in lines if "loss" not in line and "proposed" not in line] == [
        f"trial 0: {WAITS}",
        f"trial 1: {WAITS}",
        "trial 1: goes on from epoch 2",
        "trial 0: stopped",
        "trial 2: stopped",
    ]
    of_one = [event for event in events if event.trial == 1]
    assert [line.split("  ", 1)[1] for line in event_lines(spec, events, of_one, named=False)][-2:] == [WAITS, "goes on from epoch 2"]
