"""Trials that pause where ASHA would end them: who waits, who continues in which order, who ends, and what audits say about it."""

import pytest
from helpers.rules import Ruled
from helpers.simulation import result

from vit_search.config import search_file
from vit_search.ledger.events import Ended, Proposed, Reported
from vit_search.stopping import held_trials

SIGNS = [1, -1]


def freeze_thaw(sign=1, **more):
    return Ruled("freeze_thaw", **{"mode": "max" if sign == 1 else "min", "reduction_factor": 3, "epochs": 9} | more)  # rungs at 1, 3


def held(rungs):
    return {trial for trial in rungs.proposed if rungs.rule.holds(trial)}


@pytest.mark.parametrize("sign", SIGNS)
def test_a_trial_that_came_early_and_fell_short_continues_once_more_trials_have_reached_its_rung(sign):
    rungs = freeze_thaw(sign)
    reached = [rungs.stops(trial, 1, sign * value) for trial, value in enumerate([0.5, 0.9, 0.6, 0.3, 0.2])]
    assert reached == [False] * 5
    assert held(rungs) == {2, 3, 4}  # of five, only the best is among the best third
    assert not rungs.stops(5, 1, sign * 0.1)  # of six, the best two are
    assert held(rungs) == {3, 4, 5}


def test_a_trial_that_continues_is_paused_again_at_the_next_rung():
    rungs = freeze_thaw()
    for trial, value in enumerate([0.5, 0.9, 0.6, 0.3, 0.2, 0.1]):
        rungs.stops(trial, 1, value)
    rungs.stops(1, 2, 0.9), rungs.stops(1, 3, 0.9)
    assert not rungs.stops(2, 2, 0.6) and 2 not in held(rungs)  # there is no rung at epoch 2
    assert not rungs.stops(2, 3, 0.6) and 2 in held(rungs)


def test_trials_continue_in_the_order_in_which_they_were_let_go_on():
    rungs = freeze_thaw(reduction_factor=2)  # rungs at 1, 2, 4, 8
    curves = {0: [0.9, 0.9], 1: [0.5], 2: [0.4], 3: [0.95, 0.8], 4: [0.99, 0.1], 5: [0.97, 0.05]}
    for trial, curve in (curves | {6: [0.3], 7: [0.2], 8: [0.1], 9: [0.05]}).items():
        for epoch, value in enumerate(curve, 1):
            rungs.stops(trial, epoch, value)
    turns = {trial: rungs.rule.turn(trial) for trial in range(11)}
    # 3 is the second of four at rung 2; later, 1 is the fifth of ten at rung 1
    assert turns == dict.fromkeys(range(11), 0) | {3: 1, 1: 2}
    assert not held(rungs) & {1, 3}


@pytest.mark.parametrize("sign", SIGNS)
def test_the_best_paused_trials_of_a_rung_stay_and_the_others_end(sign):
    rungs = freeze_thaw(sign, most_paused=2)
    ended = [rungs.stops(trial, 1, sign * value) for trial, value in enumerate([0.9, 0.5, 0.6, 0.3])]
    assert ended == [False, False, False, True]
    assert held(rungs) == {1, 2}
    assert not rungs.stops(4, 1, sign * 0.55)  # better than one that waits
    assert held(rungs) == {2, 4} and rungs.over == {1, 3}


def test_a_trial_that_failed_while_it_waited_takes_no_place():
    rungs = freeze_thaw(most_paused=1)
    rungs.stops(0, 1, 0.9), rungs.stops(1, 1, 0.5)
    rungs.rule.apply(Ended(trial=1, outcome="failed"))
    assert held(rungs) == set()
    assert not rungs.stops(2, 1, 0.1)
    assert held(rungs) == {2}


def test_an_interrupted_trial_waits_on():
    rungs = freeze_thaw()
    rungs.stops(0, 1, 0.9), rungs.stops(1, 1, 0.5)
    rungs.rule.apply(Ended(trial=1, outcome="interrupted"))
    assert held(rungs) == {1}


def test_an_audit_does_not_wait_and_would_have_ended_only_where_it_would_not_have_continued():
    rungs = freeze_thaw(audit_share=0.5, seed=1, most_paused=2)
    audit = next(trial for trial in range(100) if rungs.rule.is_audit(trial))
    best, *others = [trial for trial in range(100) if not rungs.rule.is_audit(trial)][:9]
    rungs.stops(best, 1, 0.9)
    assert not rungs.stops(audit, 1, 0.5)
    assert held(rungs) == set()
    assert rungs.rule.audits() == [(audit, 1)]
    for trial in others[:4]:
        rungs.stops(trial, 1, 0.1)
    assert rungs.rule.audits() == [(audit, None)]  # of six it is the second
    assert held(rungs) == set(others[:2])
    rungs.stops(best, 3, 0.9), rungs.stops(audit, 3, 0.2)
    rungs.rule.apply(Ended(trial=audit, outcome="completed"))
    assert rungs.rule.audits() == [(audit, 3)]


def test_an_audit_that_would_have_been_one_too_many_would_have_ended():
    rungs = freeze_thaw(audit_share=0.5, seed=1, most_paused=1)
    audit = next(trial for trial in range(100) if rungs.rule.is_audit(trial))
    best, other, *more = [trial for trial in range(100) if not rungs.rule.is_audit(trial)][:9]
    for trial, value in ((best, 0.9), (other, 0.6), (audit, 0.5)):
        rungs.stops(trial, 1, value)
    for trial in more[:6]:
        rungs.stops(trial, 1, 0.1)
    assert rungs.rule.audits() == [(audit, 1)]  # it is the third of nine, but only the better one was kept


def test_with_strata_the_paused_trials_of_each_group_are_counted_by_themselves():
    rungs = freeze_thaw(most_paused=1, boundaries=[10.0])
    for trial, (value, flops) in enumerate([(0.9, 5.0), (0.5, 5.0), (0.4, 50.0), (0.3, 50.0)]):
        assert not rungs.stops(trial, 1, value, flops)
    assert held(rungs) == {1, 3}


def test_who_waits_follows_from_the_events_and_as_many_as_keep_checkpoints_do():
    spec = search_file.parse(
        "name: t\ndata: {name: digits}\ntrials: 9\nepochs: 9\nmodel: {dim: 16, heads: 2}\nkeep_checkpoints: 2\n"
        "stopping: {kind: freeze_thaw, grace_epochs: 1, audit_share: 0}\n"
    )
    events = [Proposed(trial=trial, params={}) for trial in range(5)]
    events += [Reported(trial=trial, result=result(1, value)) for trial, value in enumerate([0.9, 0.4, 0.5, 0.6, 0.1])]
    assert held_trials(spec, events) == {1, 2, 3}  # a trial that must end waits until the event of its end
    assert held_trials(spec, [*events, Ended(trial=1, outcome="stopped"), Ended(trial=4, outcome="stopped")]) == {2, 3}
