"""What the process over learning curves sees, and what it proposes."""

import math
import random

import numpy as np
import pytest
from helpers.asking import CONDITIONAL, SPEC, Asking

from vit_search.search.proposals.curves import Curves, propose
from vit_search.search.proposals.history import History, Past


def trial(values, state="stopped", **params):
    return Past(params, state, values)


def test_the_trend_is_the_median_gain_of_those_with_both_epochs():
    trials = [trial({1: 0.5, 3: 0.6, 9: 0.65}), trial({1: 0.2, 3: 0.4}), trial({1: 0.3, 3: 0.6})]
    for mode, sign in (("max", 1), ("min", -1)):
        assert Curves(trials, [1, 3, 9], mode).trend([1, 3, 9]) == pytest.approx([0, sign * 0.2, sign * 0.25])
    assert Curves(trials, [1, 3, 9], "max").trend([1, 2, 3]) == pytest.approx([0, 0, 0])  # no trial tells of epoch 2


def test_a_curve_is_modelled_at_its_levels_and_at_its_newest_epoch():
    two = Curves([], [1, 3], "max")
    assert two.epochs_of(trial({1: 0.5, 2: 0.5})) == [1, 2]
    assert two.epochs_of(trial({1: 0.5, 2: 0.5, 3: 0.5})) == [1, 3]
    assert two.epoch_coordinates([0, 1, 3]) == pytest.approx([0, 0.5, 1])  # ln 2 / ln 4


@pytest.mark.parametrize(("mode", "sign"), [("max", 1), ("min", -1)])
def test_a_point_is_a_score_without_the_trend(mode, sign):
    trials = [trial({1: 0.5, 3: 0.75}), trial({1: 0.25, 2: 0.375}), trial({}, "running"), trial({1: 0.5}, "diverged"), trial({3: 0.25})]
    seen = Curves(trials, [1, 3], mode)  # no trial has values at both 2 and 3, so no gain is known there
    assert [one.values for one in seen.observed] == [{1: 0.5, 3: 0.75}, {1: 0.25, 2: 0.375}, {3: 0.25}]
    indices, epochs, scores = seen.observations()
    assert (indices, epochs) == ([0, 0, 1, 1, 2], [1, 3, 1, 2, 3])
    gain = 0.125  # from epoch 1 to 2, by the second trial alone
    assert scores == pytest.approx([sign * v for v in (0.5, 0.75 - gain, 0.25, 0.375 - gain, 0.25 - gain)])
    assert (seen.running, seen.diverged) == ([trials[2]], [trials[3]])


def test_a_trial_runs_until_its_value_at_the_full_length():
    half, whole = trial({1: 0.5}, "running"), trial({1: 0.5, 3: 0.5}, "running")
    assert Curves([half, whole], [1, 3], "max").running == [half]


def worth(params):
    return 0.9 - 0.1 * abs(math.log10(params["lr"] / 1e-3)) - 0.02 * params["depth"]


def learned(count, lengths, space=SPEC.space):
    rng, trials = random.Random(0), []
    while len(trials) < count:
        params = space.draw(rng)
        if space.problem(params) is None:
            length = lengths[len(trials) % len(lengths)]
            trials.append(Past(params, "running" if length < 3 else "stopped", {e: worth(params) - 0.3 / e for e in range(1, length + 1)}))
    return trials


@pytest.mark.parametrize("lengths", [(2,), (0, 1, 2, 3, 3, 9)], ids=["first epochs alone", "all lengths"])
def test_proposals_are_better_than_chance_whatever_the_lengths(lengths):
    levels = [1, 3, 9]
    trials = [*learned(24, lengths), Past({"dim": 16, "heads": 2, "depth": 1, "lr": 1e-2}, "diverged")]
    before = sorted(worth(one.params) for one in trials)
    for seed in range(8):
        made = propose(SPEC.space, Curves(trials, levels, "max"), random.Random(seed), lambda params: SPEC.space.problem(params) is None)
        trials.append(Past(made, "running", {}))
    made = [one.params for one in trials[25:]]
    assert np.mean([worth(params) for params in made]) > before[-8]
    assert len({params["lr"] for params in made}) == 8
    one, other = (propose(SPEC.space, Curves(trials, levels, "max"), random.Random(1), lambda params: True) for _ in range(2))
    assert one == other
    assert propose(SPEC.space, Curves(trials, levels, "max"), random.Random(1), lambda params: False) is None
    given = {"dim": 24, "depth": 4}
    made = propose(SPEC.space, Curves(trials, levels, "max"), random.Random(1), lambda params: True, given)
    assert {name: made[name] for name in given} == given


def test_each_level_shows_its_best_and_its_newest_curves():
    history = History([1, 3], ["max"])
    for value in (0.9, 0.1, 0.8, 0.2, 0.3):
        history.add(trial({1: value}))
    for value in (0.4, 0.7, 0.6, 0.5):
        history.add(trial({1: value, 3: value}))
    for state in ("running", "failed", "infeasible", "diverged"):
        history.add(trial({}, state))
    chosen = history.curves(4)  # two for the upper level: 0.7, its best, and 0.5, its newest; two for the lower: 0.9 and 0.6
    assert [(one.values.get(1), one.state) for one in chosen] == [
        (0.9, "stopped"), (0.7, "stopped"), (0.6, "stopped"), (0.5, "stopped"), (None, "running"), (None, "diverged"),
    ]  # fmt: skip
    assert len(history.curves(100)) == 11


@pytest.mark.parametrize("model", ["rung", "joint"])
@pytest.mark.parametrize("space", [SPEC.space, CONDITIONAL.space], ids=["plain", "conditional"])
def test_a_resumed_search_proposes_the_same(model, space):
    asking = Asking(space=space, sampler="gp", model=model)
    asking.run(14)
    again = Asking(space=space, sampler="gp", model=model)
    for event in asking.events:
        again.take(event)
    assert again.proposals.ask() == asking.proposals.ask()
