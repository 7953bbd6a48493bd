"""Proposals and rungs, without Ray: what is told to Optuna, and who is stopped."""

import optuna
import pytest

from vit_search.search.stopping import Rungs
from vit_search.search.suggest import OptunaSearcher
from vit_search.spec import search_file
from vit_search.spec.config import EpochResult
from vit_search.tracking.ledger import Ended, Infeasible, Proposed, Reported

SPEC = search_file.parse("""
name: t
data: {name: digits}
trials: 20
epochs: 3
model: {dim: {choice: [16, 24]}, heads: {choice: [2, 3, 5]}, depth: {int: [1, 4]}}
training: {lr: {float: [1e-4, 1e-2], log: true}}
""")


def result(epoch, value):
    return EpochResult(
        epoch=epoch, train_loss=1.0, train_accuracy=0.5, val_loss=1.0, val_accuracy=value, val_top5_accuracy=None,
        lr=1e-3, images_per_s=1.0, seconds=1.0, peak_memory_bytes=1,
    )  # fmt: skip


def searcher(record=lambda event: None, trials=20, mode="max"):
    return OptunaSearcher(SPEC.space, metric="val_accuracy", mode=mode, epochs=3, trials=trials, seed=5, record=record)


@pytest.mark.parametrize(("mode", "values"), [("max", [0.5, 0.9, 0.4, 0.8]), ("min", [0.5, 0.1, 0.6, 0.2])])
def test_a_trial_outside_the_best_third_of_its_rung_is_stopped(mode, values):
    rungs = Rungs(mode=mode, grace_epochs=1, reduction_factor=3, epochs=9)
    assert sorted(rungs.values) == [1, 3]
    # the first goes on; the best goes on; with fewer than six results only the best of all does
    assert [rungs.stops(1, value) for value in values] == [False, False, True, True]
    assert not rungs.stops(2, values[2])  # there is no rung at epoch 2


def test_nan_is_worst_and_leaves_no_trace_in_a_rung():
    rungs = Rungs(mode="max", grace_epochs=1, reduction_factor=2, epochs=4)
    assert rungs.stops(1, float("nan"))
    assert rungs.stops(1, None)
    assert rungs.values[1] == []


def test_a_tie_with_the_cutoff_goes_on():
    rungs = Rungs(mode="max", grace_epochs=1, reduction_factor=2, epochs=4)
    assert [rungs.stops(1, 0.5) for _ in range(4)] == [False] * 4


def test_proposals_that_cannot_be_built_are_recorded_and_spend_no_trial_number():
    events = []
    asked = searcher(events.append)
    configs = [asked.suggest(str(i)) for i in range(20)]
    assert [c["trial"] for c in configs] == list(range(20))
    assert all(c["dim"] % c["heads"] == 0 for c in configs)
    assert any(isinstance(e, Infeasible) and "does not divide" in e.reason for e in events)
    assert asked.suggest("one too many") == "FINISHED"


def test_optuna_is_told_the_truth():
    asked = searcher()
    for i in range(4):
        asked.suggest(str(i))
    for epoch in (1, 2, 3):
        asked.on_trial_result("0", {"epoch": epoch, "val_accuracy": 0.1 * epoch})
    asked.on_trial_complete("0", {"epoch": 3, "val_accuracy": 0.3})
    asked.on_trial_complete("1", {"epoch": 1, "val_accuracy": 0.2})
    asked.on_trial_complete("2", {"failure": "diverged", "reason": "nan"})
    asked.on_trial_complete("3", error=True)
    states = [t.state for t in asked._study.trials if not _infeasible(t)]
    assert states == [optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED, *[optuna.trial.TrialState.FAIL] * 2]
    complete, pruned = [t for t in asked._study.trials if t.intermediate_values]
    assert complete.value == pytest.approx(0.3)
    assert complete.intermediate_values == pytest.approx({1: 0.1, 2: 0.2, 3: 0.3})
    assert pruned.intermediate_values == {1: 0.2}
    assert not [t for t in asked._study.trials if t.state == optuna.trial.TrialState.RUNNING]


def _infeasible(trial):
    return trial.params["dim"] % trial.params["heads"] != 0


def test_a_searcher_fed_a_ledger_goes_on_as_the_one_that_wrote_it():
    events = []
    whole = searcher(events.append)

    def finish(asked, number, said):
        value = 0.5 + 0.01 * (number * 7 % 11)
        asked.on_trial_result(said, {"epoch": 1, "val_accuracy": value})
        events.append(Reported(trial=number, result=result(1, value)))
        asked.on_trial_complete(said, {"epoch": 1, "val_accuracy": value})
        events.append(Ended(trial=number, outcome="stopped"))

    for number in range(14):  # past the random start, so that TPE decides
        whole.suggest(str(number))
        finish(whole, number, str(number))
    whole.suggest("14")  # unfinished when the driver dies
    copy = searcher()
    copy.replay(list(events))
    unfinished = copy.suggest("again")
    assert unfinished == {"trial": 14, **next(e.params for e in events if isinstance(e, Proposed) and e.trial == 14)}
    for number in range(15, 18):
        assert copy.suggest(f"b{number}") == whole.suggest(str(number))
