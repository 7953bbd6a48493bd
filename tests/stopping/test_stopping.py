"""Who is stopped, without Ray: rungs, brackets, the median, audits, and what they say about stopping."""

import random
from collections import Counter

import pytest
from helpers.rules import Ruled
from helpers.simulation import result

from vit_search.config import search_file
from vit_search.ledger.events import Proposed, Reported
from vit_search.search.hindsight import false_kills
from vit_search.stats import wilson
from vit_search.stopping import RULES, held_trials
from vit_search.stopping.rungs import boundaries, levels

KINDS = tuple(RULES)


def asha(mode="max", factor=3, epochs=9, **more):
    return Ruled(mode=mode, reduction_factor=factor, epochs=epochs, **more)


def test_there_is_no_rung_at_full_length():
    assert levels(grace_epochs=1, reduction_factor=3, epochs=9) == [1, 3]
    assert levels(grace_epochs=1, reduction_factor=3, epochs=10) == [1, 3, 9]
    assert levels(grace_epochs=5, reduction_factor=3, epochs=5) == []


@pytest.mark.parametrize(("mode", "values"), [("max", [0.5, 0.9, 0.4, 0.8]), ("min", [0.5, 0.1, 0.6, 0.2])])
def test_a_trial_outside_the_best_third_of_its_rung_is_stopped(mode, values):
    rungs = asha(mode)
    # the first goes on; the best goes on; with fewer than six results only the best of all does
    assert [rungs.stops(trial, 1, value) for trial, value in enumerate(values)] == [False, False, True, True]
    assert not rungs.stops(2, 2, values[2])  # there is no rung at epoch 2


@pytest.mark.parametrize("kind", KINDS)
def test_nan_stops_every_trial_and_leaves_no_trace(kind):
    rungs = asha(kind=kind, audit_share=0.999)
    assert rungs.stops(0, 1, float("nan"))
    assert rungs.stops(1, 1, None)
    assert not rungs.stops(2, 1, -100.0)  # the first that counts


def test_a_tie_with_the_cutoff_goes_on():
    rungs = asha(factor=2, epochs=4)
    assert [rungs.stops(trial, 1, 0.5) for trial in range(4)] == [False] * 4


@pytest.mark.parametrize("mode", ["max", "min"])
def test_the_median_stops_whoever_never_was_better_than_half_of_the_others(mode):
    sign = 1 if mode == "max" else -1
    rungs = Ruled("median", mode=mode, grace_epochs=2, epochs=4)
    for trial in range(5):  # 1, 2, 3, 4, 5 at every epoch: the median is 3
        for epoch in (1, 2, 3, 4):
            assert not rungs.stops(trial, epoch, sign * (trial + 1.0))  # too few others
    assert not rungs.stops(5, 1, sign * 2.0)  # within the grace
    assert rungs.stops(5, 2, sign * 2.5)
    assert [rungs.stops(6, epoch, sign * value) for epoch, value in ((1, 3.5), (2, 0.0), (3, 0.0))] == [False] * 3  # it was good once


def test_a_hyperband_trial_is_first_looked_at_on_its_brackets_rung():
    rungs = asha(kind="hyperband", epochs=27)  # rungs at 1, 3, 9
    counts = Counter(rungs.rule.first_rung(trial) for trial in range(4000))
    # 27/4, 9/3, 3/2 and 1/1 of 12.25: the same number of epochs for each bracket
    assert [counts[b] / 4000 for b in range(4)] == pytest.approx([0.551, 0.245, 0.122, 0.082], abs=0.02)
    good, weak = (trial for trial in range(4000) if rungs.rule.first_rung(trial) == 1) and [
        t for t in range(100) if rungs.rule.first_rung(t) == 1
    ][:2]
    rungs.stops(good, 1, 0.9), rungs.stops(good, 3, 0.9)
    assert [rungs.stops(weak, epoch, 0.1) for epoch in (1, 2, 3)] == [False, False, True]


def reach(rungs, curves):
    """Let trials report their curves, one trial after the other. Returns: the trials that ended, that wait, and that go on."""
    for trial, curve in curves.items():
        any(rungs.stops(trial, epoch, value) for epoch, value in enumerate(curve, 1))
    over = {trial for trial in rungs.over if trial in curves}
    held = {trial for trial in curves if rungs.rule.holds(trial)}
    return over, held, curves.keys() - over - held


@pytest.mark.parametrize("sign", [1, -1])
def test_with_pasha_trials_wait_at_the_second_rung_as_long_as_their_ranking_there_is_that_of_the_first(sign):
    rungs = Ruled("pasha", mode="max" if sign == 1 else "min", reduction_factor=2, epochs=16)  # rungs at 1, 2, 4, 8
    assert reach(rungs, {0: [sign * 0.1, sign * 0.2], 1: [sign * 0.3, sign * 0.4], 2: [sign * 0.5, sign * 0.6]}) == (
        set(),
        {0, 1, 2},
        set(),
    )
    assert rungs.rule.last_rung == 1
    assert rungs.rule.leader == 2


@pytest.mark.parametrize("sign", [1, -1])
def test_once_the_ranking_changes_the_best_of_those_that_wait_go_on_to_the_next_rung(sign):
    rungs = Ruled("pasha", mode="max" if sign == 1 else "min", reduction_factor=2, epochs=16)
    reach(rungs, {0: [sign * 0.1, sign * 0.2], 1: [sign * 0.3, sign * 0.4]})
    ended, held, goes_on = reach(rungs, {2: [sign * 0.5, sign * 0.3]})  # second at the last rung, and was first
    assert rungs.rule.last_rung == 2
    assert (ended, held, goes_on) == ({2}, set(), set())  # outside the best half, of 3: the best
    assert rungs.over == {0, 2} and not rungs.rule.holds(1)
    assert reach(rungs, {1: [0.0] * 0}) == (set(), set(), {1})
    assert [rungs.stops(1, epoch, sign * 0.5) for epoch in (3, 4)] == [False, False]
    assert rungs.rule.holds(1) and rungs.rule.leader == 1


def test_scores_that_differ_by_less_than_the_noise_count_as_equal():
    rungs = Ruled("pasha", reduction_factor=3, grace_epochs=2, epochs=54)  # rungs at 2, 6, 18
    up_and_down = {0: [0.1, 0.50, 0.50, 0.56, 0.50, 0.60], 1: [0.2, 0.51, 0.53, 0.53, 0.53, 0.58]}
    assert reach(rungs, up_and_down)[1] == {0, 1}  # they swap at epochs 4, 5 and 6; 0.02 apart at the end, 0.01 at the rung before
    assert (rungs.rule.noise, rungs.rule.last_rung) == (pytest.approx(0.02), 1)
    reach(rungs, {2: [0.3, 0.56, 0.6, 0.6, 0.6, 0.57]})  # 0.05 ahead at the rung before, the last now
    assert rungs.rule.last_rung == 2


def test_without_noise_the_same_swap_raises_the_last_rung():
    rungs = Ruled("pasha", reduction_factor=3, grace_epochs=2, epochs=54)
    reach(rungs, {0: [0.1, 0.50, 0.5, 0.5, 0.5, 0.60], 1: [0.2, 0.51, 0.53, 0.53, 0.53, 0.58]})
    assert rungs.rule.last_rung == 2


def test_an_audit_does_not_wait_and_counts_in_the_ranking():
    rungs = Ruled("pasha", reduction_factor=2, epochs=16, audit_share=0.5, seed=1)
    audit = next(trial for trial in range(100) if rungs.rule.is_audit(trial))
    good, weak = [trial for trial in range(100) if not rungs.rule.is_audit(trial)][:2]
    assert reach(rungs, {audit: [0.4, 0.5], good: [0.5, 0.6], weak: [0.1]}) == ({weak}, {good}, {audit})
    assert rungs.rule.leader == good
    assert rungs.rule.audits() == [(audit, 2)]  # it would have ended there, as the second of two


@pytest.mark.parametrize(("kind", "held"), [("pasha", {0, 1}), ("asha", set())])
def test_who_is_held_follows_from_the_events(kind, held):
    spec = search_file.parse(
        "name: t\ndata: {name: digits}\ntrials: 9\nepochs: 9\nmodel: {dim: 16, heads: 2}\n"
        f"stopping: {{kind: {kind}, grace_epochs: 1, audit_share: 0}}\n"
    )
    events = [Proposed(trial=trial, params={}) for trial in (0, 1)]
    events += [Reported(trial=trial, result=result(epoch, 0.2 * trial + 0.1 * epoch)) for trial in (0, 1) for epoch in (1, 2, 3)]
    assert held_trials(spec, events) == held


def test_pasha_with_two_lengths_alone_is_asha():
    rungs = Ruled("pasha", reduction_factor=3, epochs=3)  # one rung, at 1
    assert reach(rungs, {0: [0.5, 0.6, 0.7], 1: [0.4]}) == ({1}, set(), {0})


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_results_in_the_same_order_rebuild_the_same_rungs(kind):
    rng = random.Random(1)
    events = [(trial, epoch, rng.random(), rng.random()) for epoch in range(1, 9) for trial in rng.sample(range(40), 40)]
    once, again = (asha(factor=2, kind=kind, audit_share=0.2, boundaries=[0.5], seed=3) for _ in range(2))
    first = [once.stops(*event) for event in events]
    assert [again.stops(*event) for event in events] == first
    assert once.rule.audits() == again.rule.audits()
    assert any(first) == (kind != "none")


def test_strata_are_held_against_themselves_alone_and_share_the_last_rung():
    rungs = asha(boundaries=[10.0])
    assert not rungs.stops(0, 1, 0.9, 5.0)
    assert rungs.stops(1, 1, 0.1, 5.0)
    assert not rungs.stops(2, 1, 0.2, 50.0)  # the first of the large ones
    rungs.stops(0, 3, 0.9, 5.0)
    assert rungs.stops(2, 3, 0.2, 50.0)


def test_strata_part_the_proposals_that_can_be_run_into_equal_groups():
    space = search_file.parse("""
name: t
data: {name: digits}
trials: 20
epochs: 3
model: {dim: {choice: [16, 24, 32, 64]}, heads: {choice: [2, 3, 4]}, depth: {int: [1, 8]}}
""").space
    parts = boundaries(space, 3)
    rng = random.Random(7)
    flops = [space.cost(p).train_flops for p in (space.draw(rng) for _ in range(1000)) if space.problem(p) is None]
    shares = [sum(f < parts[0] for f in flops), sum(parts[0] <= f < parts[1] for f in flops), sum(f >= parts[1] for f in flops)]
    assert [share / len(flops) for share in shares] == pytest.approx([1 / 3] * 3, abs=0.06)
    assert boundaries(space, 3) == parts
    assert boundaries(space, 1) == []


def test_an_audit_goes_on_and_remembers_when_it_would_have_been_stopped():
    rungs = asha(audit_share=0.5, seed=1)
    audits = [trial for trial in range(1000) if rungs.rule.is_audit(trial)]
    assert len(audits) == pytest.approx(500, abs=50)
    good = next(trial for trial in range(1000) if trial not in audits)
    assert not rungs.stops(good, 1, 0.9)
    assert not rungs.stops(audits[0], 1, 0.1)
    assert not rungs.stops(audits[1], 1, 0.95)
    assert not rungs.stops(good, 3, 0.9)
    assert not rungs.stops(audits[0], 3, 0.05)
    assert rungs.rule.audits() == [(audits[0], 1), (audits[1], None)]
    assert asha().rule.audits() == []


@pytest.mark.parametrize("sign", [1, -1])
def test_a_false_kill_ends_better_than_half_of_those_let_through(sign):
    finals = {0: 0.9, 1: 0.1, 2: 0.5, 3: 0.6, 4: 0.7}  # let through: 2, 3, 4, whose median is 0.6
    audits = [(0, 1), (1, 3), (2, None), (9, 1)]  # 9 has not completed
    stopped, wrong, low, high = false_kills(audits, {t: sign * v for t, v in finals.items()}, "max" if sign == 1 else "min")
    assert (stopped, wrong) == (2, 1)
    assert (low, high) == pytest.approx((0.0945, 0.9055), abs=1e-4)  # Wilson for 1 of 2
    assert false_kills([(2, None)], finals, "max") == (0, 0, 0.0, 1.0)


def test_the_interval_of_a_perfect_score_ends_at_it():
    for count in range(1, 400):
        assert wilson(count, count)[1] == 1.0
        assert wilson(0, count)[0] == 0.0
        low, high = wilson(count - 1, count)
        assert 0 <= low < (count - 1) / count < high < 1 or count == 1
