"""Proposals, without Ray: what is told to Optuna, what a sampler is shown, what is proposed when."""

import random
import subprocess
import sys
from dataclasses import dataclass

import pytest
from optuna.study import StudyDirection
from optuna.trial import TrialState
from vit_search.search.suggest import History, OptunaSearcher, Past

from vit_search.errors import SpecError
from vit_search.search import suggest
from vit_search.spec import search_file
from vit_search.spec.config import EpochResult
from vit_search.tracking.ledger import Commanded, Ended, Infeasible, Proposed, Reported

HEAD = "name: t\ndata: {name: digits}\ntrials: 20\nepochs: 3\n"
SPEC = search_file.parse(
    HEAD
    + """
model: {dim: {choice: [16, 24]}, heads: {choice: [2, 3, 5]}, depth: {int: [1, 4]}}
training: {lr: {float: [1e-4, 1e-2], log: true}}
"""
)
SMALL = search_file.parse(HEAD + "model: {dim: {choice: [16, 24]}, heads: {choice: [2, 3]}, depth: {int: [1, 2]}}")
CONDITIONAL = search_file.parse(
    HEAD
    + """
model: {dim: {choice: [16, 32]}, heads: 2, depth: {int: [1, 4]}, dropout: {float: [0.1, 0.5], when: "depth >= 3"}}
"""
)
EVEN = search_file.parse(
    HEAD
    + """
model: {dim: {choice: [16, 32]}, heads: 2, depth: {int: [1, 4]}}
training: {lr: {float: [1e-4, 1e-2], log: true}}
"""
)
COMPLETE, PRUNED, FAIL, RUNNING = TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL, TrialState.RUNNING
SAMPLERS = ("auto", "tpe", "gp", "cmaes", "random", "grid", "qmc")


@dataclass(frozen=True)
class Goal:
    metric: str
    mode: str


def result(epoch, value, val_loss=1.0):
    return EpochResult(
        epoch=epoch, train_loss=1.0, train_accuracy=0.5, val_loss=val_loss, val_accuracy=value, val_top5_accuracy=None,
        lr=1e-3, images_per_s=1.0, seconds=1.0, peak_memory_bytes=1,
    )  # fmt: skip


def searcher(record=lambda event: None, *, space=SPEC.space, trials=20, mode="max", **more):
    return OptunaSearcher(space, metric="val_accuracy", mode=mode, epochs=3, trials=trials, seed=5, record=record, levels=[1], **more)


def ran(asked, said, values):
    """Let a trial report its values, one per epoch, and end."""
    for epoch, value in enumerate(values, 1):
        asked.on_trial_result(said, {"epoch": epoch, "val_accuracy": value})
    asked.on_trial_complete(said, {"epoch": len(values), "val_accuracy": values[-1]})


class Driver:
    """Runs trials one after another and keeps the ledger that a real driver would."""

    def __init__(self, **more):
        self.events = []
        self.searcher = searcher(self.events.append, trials=60, **more)

    def run(self, count):
        for _ in range(count):
            said = self.searcher.suggest("t")
            number, digits = said["trial"], sum(map(ord, repr(sorted(said.items()))))
            values = [0.5 + 0.001 * (digits % 97) + 0.01 * e for e in range(3 if digits % 3 == 0 else 1)]
            for epoch, value in enumerate(values, 1):
                self.events.append(Reported(trial=number, result=result(epoch, value)))
            ran(self.searcher, "t", values)
            self.events.append(Ended(trial=number, outcome="completed" if len(values) == 3 else "stopped"))


def test_proposals_that_cannot_be_built_are_recorded_and_spend_no_trial_number():
    events = []
    asked = searcher(events.append)
    configs = [asked.suggest(str(i)) for i in range(20)]
    assert [c["trial"] for c in configs] == list(range(20))
    assert all(c["dim"] % c["heads"] == 0 for c in configs)
    assert any(isinstance(e, Infeasible) and "does not divide" in e.reason for e in events)


def test_the_search_is_finished_once_the_last_trial_is_over():
    asked = searcher(trials=2)
    asked.suggest("0"), asked.suggest("1")
    assert asked.suggest("too many") is None
    asked.on_trial_complete("0", {"epoch": 1, "val_accuracy": 0.5})
    asked.trials = 3  # a person wants one more
    assert asked.suggest("2")["trial"] == 2
    ran(asked, "1", [0.5])
    assert asked.suggest("too many") is None
    ran(asked, "2", [0.5])
    assert asked.suggest("too many") == "FINISHED"


def test_as_many_are_open_as_concurrency_allows_and_none_starts_in_a_pause():
    asked = searcher()
    asked.concurrency = 2
    assert [bool(asked.suggest(str(i))) for i in range(3)] == [True, True, False]
    ran(asked, "0", [0.5])
    asked.paused = True
    assert asked.suggest("2") is None
    asked.paused = False
    assert asked.suggest("2")["trial"] == 2
    asked.over = True
    assert asked.suggest("3") is None
    ran(asked, "1", [0.5]), ran(asked, "2", [0.5])
    assert asked.suggest("3") == "FINISHED"


def test_few_are_open_beyond_the_places_that_there_are():
    asked, places, given = searcher(trials=200), 0, 0
    asked.places = lambda: places

    def opened():
        nonlocal given
        while asked.suggest(str(given)):
            given += 1
        return given

    assert opened() == 4
    places = 40
    assert opened() == 44
    for number in range(40):
        asked.begun(number)
    assert opened() == 50
    places = 20  # a node is gone, and Ray has not ended its trials yet
    assert opened() == 50
    ran(asked, "0", [0.5])
    assert opened() == 50  # 39 run, of 49 that are open
    asked.concurrency = 30
    ran(asked, "1", [0.5])
    assert opened() == 50


def test_no_more_are_given_in_a_row_than_is_allowed():
    asked = searcher()
    asked.allowed = 2
    assert [bool(asked.suggest(str(i))) for i in range(3)] == [True, True, False]
    asked.allowed = 1
    assert [bool(asked.suggest(str(i))) for i in range(2, 4)] == [True, False]


def test_a_trial_that_waits_is_withdrawn_in_a_pause_and_given_again_as_it_was():
    asked = searcher()
    given = [asked.suggest(str(i)) for i in range(3)]
    asked.begun(0)
    assert not any(asked.withdrawn(number) for number in range(3))
    asked.paused = True
    assert [asked.withdrawn(number) for number in range(3)] == [False, True, True]
    for i in (1, 2):
        asked.on_trial_complete(str(i))
    assert [asked.waits(number) for number in range(3)] == [False, True, True]
    asked.paused = False
    assert [asked.suggest(f"again {i}") for i in range(2)] == given[1:]
    asked.begun(1)
    asked.over = True
    asked.on_trial_complete("again 1")  # it had not begun
    ran(asked, "0", [0.5]), ran(asked, "again 0", [0.5])
    assert asked.suggest("more") == "FINISHED"
    assert [asked.waits(number) for number in range(3)] == [False, False, True]


def test_the_truth_is_told():
    asked = searcher()
    for i in range(6):
        asked.suggest(str(i))
    ran(asked, "0", [0.1, 0.2, 0.3])
    ran(asked, "1", [0.2])
    asked.on_trial_result("2", {"epoch": 1, "val_accuracy": float("nan")})
    asked.on_trial_complete("2", {"failure": "diverged", "reason": "nan"})
    asked.on_trial_complete("3", error=True)
    asked.on_trial_complete("4")  # stopped by hand before its first epoch
    told = asked.truth().trials
    trials = [t for t in told if t.constraints["buildable"] < 0]
    assert [t.state for t in trials] == [COMPLETE, PRUNED, FAIL, FAIL, FAIL, RUNNING]  # the last is open
    assert trials[0].value == pytest.approx(0.3)
    assert trials[0].intermediate_values == pytest.approx({1: 0.1, 2: 0.2, 3: 0.3})
    assert trials[1].intermediate_values == {1: 0.2}
    refused = [t for t in told if t.constraints["buildable"] > 0]
    assert refused and all(t.params["dim"] % t.params["heads"] and t.state == PRUNED for t in refused)


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


def test_what_cannot_be_built_is_shown_after_the_start_as_a_violation():
    few, enough = [past("stopped", 0.5)] * 9, [past("stopped", 0.5)] * 10
    assert PRUNED not in [state for _, state, _ in history([past("infeasible"), *few]).view()]
    assert history([past("infeasible"), *enough]).view()[0][1] == PRUNED
    asked = searcher()
    for heads, state, values in [(5, "infeasible", {})] + [(2, "stopped", {1: 0.5})] * 10:
        asked._history.add(Past({"dim": 16, "heads": heads, "depth": 1, "lr": 1e-3}, state, values))
    assert [t.constraints["buildable"] for t in asked.view().trials] == [1.0] + [-1.0] * 10


@pytest.mark.parametrize("mode", ["max", "min"])
def test_a_long_history_is_shown_as_its_best_and_its_newest(mode):
    sign = 1 if mode == "max" else -1
    rng = random.Random(0)
    values = [sign * rng.random() for _ in range(300)]
    shown = [one.values[1] for one, _, _ in history([past("stopped", value) for value in values], [mode]).view(most=50)]
    best = sorted(values, key=lambda value: -sign * value)[:25]
    others = [value for value in values if value not in best][-25:]
    assert shown == [value for value in values if value in best or value in others]


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("space", [SPEC.space, CONDITIONAL.space], ids=["plain", "conditional"])
def test_a_searcher_fed_a_ledger_goes_on_as_the_one_that_wrote_it(sampler, space):
    space = SMALL.space if sampler == "grid" else space
    driver = Driver(sampler=sampler, space=space, first=[{"depth": 2}])
    driver.run(3 if sampler == "grid" else 12)  # past the random start, so that the sampler decides
    driver.searcher.suggest("unfinished when the driver dies")
    copy = searcher(sampler=sampler, space=space, trials=60, first=[{"depth": 2}])
    copy.replay(list(driver.events))
    last = [e for e in driver.events if isinstance(e, Proposed)][-1]
    assert copy.suggest("again") == {"trial": last.trial, **last.params}
    for i in range(2):
        assert copy.suggest(f"b{i}") == driver.searcher.suggest(f"a{i}")
    assert driver.events[0].params["depth"] == 2


def test_a_grid_tries_every_point_that_can_be_built_once():
    events = []
    asked = searcher(events.append, space=SMALL.space, trials=100, sampler="grid", first=[{"dim": 24, "heads": 3, "depth": 1}])
    found = []
    while isinstance(said := asked.suggest("t"), dict):
        found.append({name: said[name] for name in ("dim", "heads", "depth")})
        ran(asked, "t", [0.5])
    assert said == "FINISHED"
    assert found[0] == {"dim": 24, "heads": 3, "depth": 1}
    assert len(found) == len({tuple(p.values()) for p in found}) == 6  # 2 x 2 x 2 but for dim 16 with 3 heads
    assert sum(isinstance(e, Infeasible) for e in events) == 2


def test_a_sobol_sequence_fills_the_space_evenly():
    asked = searcher(space=EVEN.space, trials=64, sampler="qmc")
    configs = [asked.suggest(str(i)) for i in range(64)]
    assert [sum(c["dim"] == dim for c in configs) for dim in (16, 32)] == pytest.approx([32, 32], abs=2)
    assert [sum(c["depth"] == depth for c in configs) for depth in (1, 2, 3, 4)] == pytest.approx([16] * 4, abs=2)
    assert sum(c["lr"] < 1e-3 for c in configs) == pytest.approx(32, abs=1)  # the middle of a logarithmic range


@pytest.mark.parametrize("sampler", ["tpe", "gp", "random", "qmc"])
def test_a_parameter_is_proposed_only_where_its_condition_holds(sampler):
    driver = Driver(space=CONDITIONAL.space, sampler=sampler)
    driver.run(16)
    proposed = [e.params for e in driver.events if isinstance(e, Proposed)]
    assert all(("dropout" in params) == (params["depth"] >= 3) for params in proposed)
    assert len({"dropout" in params for params in proposed}) == 2


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_nothing_is_proposed_twice_while_there_is_something_new(sampler):
    asked = searcher(space=SMALL.space, trials=6, sampler=sampler)
    seen = set()
    for i in range(4):  # 6 can be built in all
        said = asked.suggest(str(i))
        ran(asked, str(i), [0.5])
        seen.add((said["dim"], said["heads"], said["depth"]))
    assert len(seen) == 4


def test_points_to_start_with_and_hand_made_ones_go_first():
    asked = searcher(first=[{"lr": 5e-3, "dim": 16, "heads": 2, "depth": 1}, {"depth": 4, "heads": 2}])
    assert asked.suggest("0") == {"trial": 0, "lr": 5e-3, "dim": 16, "heads": 2, "depth": 1}
    asked.add({"lr": 2e-3})
    assert asked.suggest("1")["lr"] == 2e-3
    said = asked.suggest("2")
    assert (said["depth"], said["heads"]) == (4, 2)
    assert 1e-4 <= said["lr"] <= 1e-2
    with pytest.raises(SpecError, match="choose from 16, 24"):
        asked.add({"dim": 17})


def test_a_hand_made_point_that_was_not_reached_survives_a_resume():
    events = []
    asked = searcher(events.append, first=[{"depth": 4, "heads": 2}])
    asked.suggest("0")
    asked.add({"lr": 2e-3})
    events.append(Commanded(name="add", arguments={"lr": 2e-3}, answer="", by="me"))
    copy = searcher(first=[{"depth": 4, "heads": 2}])
    copy.replay(list(events))
    assert copy.suggest("again")["trial"] == 0
    assert copy.suggest("1") == asked.suggest("1")
    assert copy.suggest("2") == asked.suggest("2")


GOALS = (Goal("params", "min"), Goal("val_loss", "min"))


def test_further_objectives_have_their_own_directions_and_values():
    asked = searcher(objectives=GOALS)
    said = asked.suggest("0")
    for epoch, loss in ((1, 0.9), (2, 0.8), (3, 0.7)):
        asked.on_trial_result("0", {"epoch": epoch, "val_accuracy": 0.1 * epoch, "val_loss": loss})
    asked.on_trial_complete("0", {"epoch": 3, "val_accuracy": 0.3, "val_loss": 0.7})
    params = {name: value for name, value in said.items() if name != "trial"}
    size = SPEC.space.cost(params).params
    true, shown = asked.truth(), asked.view()
    assert true.directions == shown.directions == [StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE, StudyDirection.MINIMIZE]
    assert [t.values for t in true.trials if t.state == COMPLETE] == [pytest.approx([0.3, size, 0.7])]
    assert [t.values for t in shown.trials if t.state == COMPLETE] == [pytest.approx([0.1, size, 0.7])]  # the first at its rung


@pytest.mark.parametrize("sampler", ["tpe", "gp"])
def test_compromises_are_searched_for_with_several_objectives(sampler):
    asked = searcher(objectives=[Goal("params", "min")], sampler=sampler, trials=40)
    for i in range(14):
        assert asked.suggest(str(i))["trial"] == i
        ran(asked, str(i), [0.5 + i / 100])


def test_earlier_searches_are_shown_to_the_sampler_as_far_as_they_fit():
    rng = random.Random(0)
    point = {"dim": 16, "heads": 2, "depth": 1, "lr": 1e-3}
    earlier = [({**point, "lr": rng.uniform(1e-4, 1e-2)}, {1: 0.5, 2: 0.6, 3: 0.7}, "completed") for _ in range(12)]
    earlier += [
        ({**point, "dim": 999}, {1: 0.5}, "stopped"),
        ({"momentum": 0.9}, {1: 0.5}, "stopped"),
        ({"lr": 1e-3, "beta": 1}, {1: 0.4}, "stopped"),
    ]
    asked = searcher(earlier=earlier)
    shown = asked.view().trials
    assert len(shown) == 12  # at epoch 3, which the last did not reach
    assert {frozenset(t.params) for t in shown} == {frozenset(point)}
    assert asked.truth().trials == []
    assert asked.suggest("0") != searcher().suggest("0")  # it does not start at random
    assert asked.suggest("1")["trial"] == 1


@pytest.mark.parametrize("sampler", ["tpe", "gp"])
def test_a_sampler_learns(sampler):
    asked = searcher(sampler=sampler, trials=60)
    values = []
    for i in range(26):
        said = asked.suggest(str(i))
        values.append(1 - abs(said["depth"] - 3) / 10 - abs(said["lr"] - 2e-3) * 50)
        ran(asked, str(i), [values[-1]])
    assert sum(value > max(values[:10]) for value in values[10:]) >= 3  # the first 10 are drawn at random


@pytest.mark.parametrize("sampler", ["auto", "gp", "tpe"])
def test_a_search_of_nothing_repeats_its_one_point(sampler):
    fixed = search_file.parse(HEAD + "model: {dim: 16, heads: 2, depth: 1}")
    driver = Driver(space=fixed.space, sampler=sampler)
    driver.run(13)
    assert [e.params for e in driver.events if isinstance(e, Proposed)] == [{}] * 13


def test_whoever_suits_the_history_proposes():
    asked = searcher(trials=60)
    assert asked._current() == "gp"
    for k in range(suggest.SHOWN + 1):
        place = asked._history.add(Past({"dim": 16, "heads": 2, "depth": 1, "lr": 1e-3 + k * 1e-6}))
        asked._history.report(place, 1, 0.5)
    assert asked._current() == "tpe"
    assert searcher(space=CONDITIONAL.space)._current() == "tpe"
    assert searcher(objectives=[Goal("params", "min")])._current() == "tpe"
    assert searcher(sampler="random")._current() == "random"


def test_proposals_do_not_depend_on_the_process():
    code = (
        "from tests.test_suggest import Driver, CONDITIONAL\n"
        "d = Driver(space=CONDITIONAL.space)\nd.run(13)\nprint([sorted(e.params.items()) for e in d.events if hasattr(e, 'params')])"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed, "PATH": ""}, capture_output=True, text=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1


def test_the_cost_of_an_ask_does_not_grow_with_the_history():
    asked = searcher(trials=10**6)
    for i in range(600):
        asked._take({"dim": 16, "heads": 2, "depth": 1, "lr": 1e-3 + i * 1e-6}, i, {})
        asked._report(i, 1, {"val_accuracy": i / 600})
        asked._end(i, "stopped")
    assert len(asked.view().trials) == suggest.SHOWN
