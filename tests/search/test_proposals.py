"""Proposals, without Ray: what is told to Optuna, what a sampler is shown, what is proposed when."""

import random
import subprocess
import sys
from dataclasses import dataclass

import pytest
from helpers.asking import CONDITIONAL, HEAD, SPEC, Asking
from helpers.paths import TESTS
from helpers.simulation import result
from optuna.study import StudyDirection
from optuna.trial import TrialState

from vit_search.config import search_file
from vit_search.errors import SpecError
from vit_search.ledger.events import Commanded, Ended, Infeasible, Proposed, Reported
from vit_search.search.proposals.history import SHOWN, History, Past
from vit_search.search.proposals.proposals import cheap_first

SMALL = search_file.parse(HEAD + "model: {dim: {choice: [16, 24]}, heads: {choice: [2, 3]}, depth: {int: [1, 2]}}")
EVEN = search_file.parse(
    HEAD
    + """
model: {dim: {choice: [16, 32]}, heads: 2, depth: {int: [1, 4]}}
training: {lr: {float: [1e-4, 1e-2], log: true}}
"""
)
COMPLETE, PRUNED, RUNNING = TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING
SAMPLERS = ("auto", "tpe", "gp", "cmaes", "random", "grid", "qmc")


@dataclass(frozen=True)
class Goal:
    metric: str
    mode: str


def test_proposals_that_cannot_be_built_are_recorded_and_spend_no_trial_number():
    asking = Asking()
    configs = [asking.suggest() for i in range(20)]
    assert [c["trial"] for c in configs] == list(range(20))
    assert all(c["dim"] % c["heads"] == 0 for c in configs)
    assert any(isinstance(e, Infeasible) and "does not divide" in e.reason for e in asking.events)


def test_what_became_of_each_proposal_is_known():
    asking = Asking()
    for _ in range(6):
        asking.suggest()
    asking.ran(0, [0.1, 0.2, 0.3])
    asking.ran(1, [0.2])
    asking.ran(2, [float("nan")], "diverged")
    asking.ran(3, [], "failed")
    asking.ran(4, [])  # stopped by hand before its first epoch: it tells nothing either
    pasts = asking.proposals.history.pasts
    trials = [past for past in pasts if past.state != "infeasible"]
    assert [past.state for past in trials] == ["completed", "stopped", "diverged", "failed", "failed", "running"]
    assert [past.values for past in trials[:3]] == [pytest.approx({1: 0.1, 2: 0.2, 3: 0.3}), {1: 0.2}, {}]
    refused = [past for past in pasts if past.state == "infeasible"]
    assert refused and all(past.params["dim"] % past.params["heads"] for past in refused)


def past(state, *values):
    return Past({"lr": 0.1}, state, dict(enumerate(values, 1)))


def history(pasts, modes=("max",)):
    made = History([1, 3], modes)
    for one in pasts:
        made.add(one)
    return made


def test_trials_are_compared_at_the_last_rung_that_enough_of_them_reached():
    one, three = [past("stopped", 0.5)], [past("completed", 0.5, 0.6, 0.7)]
    assert history([]).level == 1
    assert history(three * 9 + one * 20).level == 1
    assert history(three * 10 + one * 20).level == 3
    assert history([past("diverged", 0.5, 0.6, 0.7)] * 10).level == 1


@pytest.mark.parametrize(("mode", "worst"), [("max", 0.6), ("min", 0.9)])
def test_the_sampler_is_shown_what_was_reached_there_and_nothing_else(mode, worst):
    finals = (0.6, 0.7, 0.8, 0.9, 0.65, 0.75, 0.85, 0.62, 0.64)
    pasts = [past("completed", 0, 0, v) for v in finals]
    pasts += [past("running", 0, 0, 0.7), past("running", 0.1), past("stopped", 0.2), past("failed", 0, 0, 0.8), past("diverged", 0.3)]
    shown = history(pasts, [mode]).view()
    assert [(state, values) for _, state, values in shown] == [
        *((COMPLETE, [v]) for v in (*finals, 0.7)), (RUNNING, None), (COMPLETE, [worst]),
    ]  # fmt: skip


def test_a_trial_that_waits_is_shown_as_one_that_was_stopped_and_counts_as_running_again_when_it_goes_on():
    finals = [past("completed", 0, 0, 0.1 * k) for k in range(10)]
    seen = history([*finals, past("running", 0.5), past("running", 0.6)])
    seen.hold({10})
    assert [state for _, state, _ in seen.view()] == [COMPLETE] * 10 + [RUNNING]
    assert [one.state for one in seen.curves()[10:]] == ["waiting", "running"]
    seen.hold({11})
    assert [one.state for one in seen.curves()[10:]] == ["running", "waiting"]
    seen.report(10, 2, 0.7)
    seen.end(11, "stopped")
    seen.hold(set())
    assert [(one.state, one.values.get(2)) for one in seen.pasts[10:]] == [("running", 0.7), ("stopped", None)]


def test_what_cannot_be_built_is_shown_after_the_start_as_a_violation():
    few, enough = [past("stopped", 0.5)] * 9, [past("stopped", 0.5)] * 10
    assert PRUNED not in [state for _, state, _ in history([past("infeasible"), *few]).view()]
    assert history([past("infeasible"), *enough]).view()[0][1] == PRUNED
    proposals = Asking().proposals
    for heads, state, values in [(5, "infeasible", {})] + [(2, "stopped", {1: 0.5})] * 10:
        proposals.history.add(Past({"dim": 16, "heads": heads, "depth": 1, "lr": 1e-3}, state, values))
    assert [t.constraints["buildable"] for t in proposals.view().trials] == [1.0] + [-1.0] * 10


@pytest.mark.parametrize("mode", ["max", "min"])
def test_a_long_history_is_shown_as_its_best_and_its_newest(mode):
    sign = 1 if mode == "max" else -1
    rng = random.Random(0)
    values = [sign * rng.random() for _ in range(300)]
    shown = [one.values[1] for one, _, _ in history([past("stopped", value) for value in values], [mode]).view(most=50)]
    best = sorted(values, key=lambda value: -sign * value)[:25]
    others = [value for value in values if value not in best][-25:]
    assert shown == [value for value in values if value in best or value in others]


def test_a_grid_tries_every_point_that_can_be_built_once():
    asking = Asking(space=SMALL.space, sampler="grid", first=[{"dim": 24, "heads": 3, "depth": 1}])
    found = []
    while suggested := asking.suggest():
        found.append({name: suggested[name] for name in ("dim", "heads", "depth")})
        asking.ran(suggested["trial"], [0.5])
    assert found[0] == {"dim": 24, "heads": 3, "depth": 1}
    assert len(found) == len({tuple(p.values()) for p in found}) == 6  # 2 x 2 x 2 but for dim 16 with 3 heads
    assert sum(isinstance(e, Infeasible) for e in asking.events) == 2


def test_a_sobol_sequence_fills_the_space_evenly():
    asking = Asking(space=EVEN.space, sampler="qmc")
    configs = [asking.suggest() for i in range(64)]
    assert [sum(c["dim"] == dim for c in configs) for dim in (16, 32)] == pytest.approx([32, 32], abs=2)
    assert [sum(c["depth"] == depth for c in configs) for depth in (1, 2, 3, 4)] == pytest.approx([16] * 4, abs=2)
    assert sum(c["lr"] < 1e-3 for c in configs) == pytest.approx(32, abs=1)  # the middle of a logarithmic range


@pytest.mark.parametrize("sampler", ["tpe", "gp", "random", "qmc"])
def test_a_parameter_is_proposed_only_where_its_condition_holds(sampler):
    asking = Asking(space=CONDITIONAL.space, sampler=sampler)
    asking.run(16)
    proposed = [e.params for e in asking.events if isinstance(e, Proposed)]
    assert all(("dropout" in params) == (params["depth"] >= 3) for params in proposed)
    assert len({"dropout" in params for params in proposed}) == 2


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_nothing_is_proposed_twice_while_there_is_something_new(sampler):
    asking = Asking(space=SMALL.space, sampler=sampler)
    seen = set()
    for i in range(4):  # 6 can be built in all
        suggested = asking.suggest()
        asking.ran(i, [0.5])
        seen.add((suggested["dim"], suggested["heads"], suggested["depth"]))
    assert len(seen) == 4


def added(**params):
    return Commanded(name="add", arguments=params, answer="", by="me")


def test_points_to_start_with_and_hand_made_ones_go_first():
    asking = Asking(first=[{"lr": 5e-3, "dim": 16, "heads": 2, "depth": 1}, {"depth": 4, "heads": 2}])
    assert asking.suggest() == {"trial": 0, "lr": 5e-3, "dim": 16, "heads": 2, "depth": 1}
    asking.take(added(lr=2e-3))
    assert asking.suggest()["lr"] == 2e-3
    suggested = asking.suggest()
    assert (suggested["depth"], suggested["heads"]) == (4, 2)
    assert 1e-4 <= suggested["lr"] <= 1e-2
    with pytest.raises(SpecError, match="choose from 16, 24"):
        asking.proposals.check_point({"dim": 17})


GOALS = (Goal("params", "min"), Goal("val_loss", "min"))


def test_further_objectives_have_their_own_directions_and_values():
    asking = Asking(objectives=GOALS)
    suggested = asking.suggest()
    for epoch, loss in ((1, 0.9), (2, 0.8), (3, 0.7)):
        asking.take(Reported(trial=0, result=result(epoch, 0.1 * epoch, val_loss=loss)))
    asking.take(Ended(trial=0, outcome="completed"))
    params = {name: value for name, value in suggested.items() if name != "trial"}
    size = SPEC.space.cost(params).params
    shown = asking.proposals.view()
    assert shown.directions == [StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE, StudyDirection.MINIMIZE]
    assert [t.values for t in shown.trials if t.state == COMPLETE] == [pytest.approx([0.1, size, 0.7])]  # the first at its rung


@pytest.mark.parametrize("sampler", ["tpe", "gp"])
def test_compromises_are_searched_for_with_several_objectives(sampler):
    asking = Asking(objectives=[Goal("params", "min")], sampler=sampler)
    for i in range(14):
        assert asking.suggest()["trial"] == i
        asking.ran(i, [0.5 + i / 100])


def test_earlier_searches_are_shown_to_the_sampler_as_far_as_they_fit():
    rng = random.Random(0)
    point = {"dim": 16, "heads": 2, "depth": 1, "lr": 1e-3}
    earlier = [({**point, "lr": rng.uniform(1e-4, 1e-2)}, {1: 0.5, 2: 0.6, 3: 0.7}, "completed") for _ in range(12)]
    earlier += [
        ({**point, "dim": 999}, {1: 0.5}, "stopped"),
        ({"momentum": 0.9}, {1: 0.5}, "stopped"),
        ({"lr": 1e-3, "beta": 1}, {1: 0.4}, "stopped"),
    ]
    asking = Asking(earlier=earlier)
    shown = asking.proposals.view().trials
    assert len(shown) == 12  # at epoch 3, which the last did not reach
    assert {frozenset(t.params) for t in shown} == {frozenset(point)}
    assert asking.suggest() != Asking().suggest()  # it does not start at random
    assert asking.suggest()["trial"] == 1


@pytest.mark.parametrize("sampler", ["tpe", "gp"])
def test_a_sampler_learns(sampler):
    asking = Asking(sampler=sampler)
    values = []
    for i in range(26):
        suggested = asking.suggest()
        values.append(1 - abs(suggested["depth"] - 3) / 10 - abs(suggested["lr"] - 2e-3) * 50)
        asking.ran(i, [values[-1]])
    assert sum(value > max(values[:10]) for value in values[10:]) >= 3  # the first 10 are drawn at random


@pytest.mark.parametrize("sampler", ["auto", "gp", "tpe"])
def test_a_search_of_nothing_repeats_its_one_point(sampler):
    fixed = search_file.parse(HEAD + "model: {dim: 16, heads: 2, depth: 1}")
    asking = Asking(space=fixed.space, sampler=sampler)
    asking.run(13)
    assert [e.params for e in asking.events if isinstance(e, Proposed)] == [{}] * 13


def test_whoever_suits_the_history_proposes():
    proposals = Asking().proposals
    assert proposals.sampler() == "gp"
    for k in range(SHOWN + 1):
        index = proposals.history.add(Past({"dim": 16, "heads": 2, "depth": 1, "lr": 1e-3 + k * 1e-6}))
        proposals.history.report(index, 1, 0.5)
    assert proposals.sampler() == "tpe"
    assert Asking(space=CONDITIONAL.space).proposals.sampler() == "tpe"
    assert Asking(objectives=[Goal("params", "min")]).proposals.sampler() == "tpe"
    assert Asking(sampler="random").proposals.sampler() == "random"


def test_proposals_do_not_depend_on_the_process():
    code = (
        "from helpers.asking import Asking, CONDITIONAL\n"
        "a = Asking(space=CONDITIONAL.space)\na.run(13)\nprint([sorted(e.params.items()) for e in a.events if hasattr(e, 'params')])"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed, "PATH": "", "PYTHONPATH": str(TESTS)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1


def test_the_cost_of_an_ask_does_not_grow_with_the_history():
    asking = Asking()
    for i in range(600):
        asking.take(Proposed(trial=i, params={"dim": 16, "heads": 2, "depth": 1, "lr": 1e-3 + i * 1e-6}))
        asking.ran(i, [i / 600])
    assert len(asking.proposals.view().trials) == SHOWN


WAYS = "training: {tune: {choice: [full, lora, head]}, lora_rank: {int: [1, 4], when: \"tune == 'lora'\"}, lr: {float: [1e-4, 1e-2]}}\n"


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_search_over_ways_of_tuning_begins_with_the_cheapest(sampler):
    spec = search_file.parse(HEAD + WAYS.replace("float", "choice" if sampler == "grid" else "float"))
    asking = Asking(space=spec.space, first=cheap_first(spec.space, spec.start_with), sampler=sampler)
    configs = [asking.suggest() for _ in range(5)]
    assert [config["tune"] for config in configs[:3]] == ["head", "lora", "full"]
    assert len({str(config | {"trial": 0}) for config in configs}) == 5


def test_who_gives_points_with_ways_of_tuning_decides_the_order():
    spec = search_file.parse(HEAD + WAYS + "start_with: [{tune: full, lr: 0.001}, {lr: 0.002}]\n")
    assert cheap_first(spec.space, spec.start_with) == []
    assert cheap_first(spec.space, spec.start_with[1:]) == [{"tune": "head"}, {"tune": "lora"}, {"tune": "full"}]
    assert cheap_first(SMALL.space, ()) == []
