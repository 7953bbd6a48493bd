"""What promotion trains anew and how it chooses: by hand, without a training."""

import dataclasses
import json

import pytest
from helpers import synthetic

from vit_search.config import search_file
from vit_search.errors import SearchError
from vit_search.files import write_whole
from vit_search.ledger import searches
from vit_search.ledger.events import Ended, Proposed, Reported
from vit_search.ledger.file import Ledger, read_trials
from vit_search.promotion import finalists
from vit_search.promotion.finalists import Finalist, choose


def finalist(number, *values, seeds=()):
    return Finalist(number, {}, 0.9, tuple(seeds or range(len(values))), values, (), tuple(range(len(values))), values)


def test_the_seed_in_the_middle_is_taken_not_the_best():
    assert finalist(0, 0.9, 0.7, 0.8).middle == 2
    assert finalist(0, 0.9, 0.7).middle == 1  # of two, the lower: it must not look better than it is
    assert finalist(0, 0.5).middle == 0
    assert finalist(0, 0.8, 0.8, 0.8).middle == 1


def test_mean_and_deviation_are_over_the_seeds():
    assert finalist(0, 0.7, 0.8, 0.9).mean == pytest.approx(0.8)
    assert finalist(0, 0.7, 0.8, 0.9).deviation == pytest.approx(0.1)
    assert finalist(0, 0.7).deviation == 0


@pytest.mark.parametrize("mode", ["min", "max"])
def test_the_cheapest_within_one_standard_error_of_the_best_is_chosen(mode):
    """The best one's deviation is 0.03, its standard error 0.03 / sqrt(3) = 0.0173."""
    sign = 1 if mode == "max" else -1
    best = finalist(0, *(sign * value for value in (0.87, 0.90, 0.93)))
    near = finalist(1, *(sign * value for value in (0.883, 0.883, 0.883)))  # 0.017 behind
    far = finalist(2, *(sign * value for value in (0.882, 0.882, 0.882)))  # 0.018 behind
    cost = {0: 300.0, 1: 200.0, 2: 100.0}
    assert choose((best, near, far), mode, lambda one: cost[one.trial]).trial == 1
    assert choose((best, near, far), mode, lambda one: 1.0).trial == 0  # none is cheaper: the best
    assert choose((best, far), mode, lambda one: cost[one.trial]).trial == 0


def test_the_best_few_of_full_length_are_planned_each_with_the_same_fresh_seeds(tmp_path):
    folder, spec, _ = synthetic.made(tmp_path, trials=12)
    plan = finalists.plan(folder, top=2, seeds=3)
    full = [t for t in read_trials(folder / "ledger.jsonl") if t.outcome == "completed"]
    best = sorted(full, key=lambda t: -t.results[-1].val_accuracy)
    assert [t.number for t in plan.finalists] == [best[0].number, best[1].number]
    assert plan.trainings == [(t.params, seed) for t in best[:2] for seed in plan.seeds]
    assert len(set(plan.seeds)) == 3
    assert not set(plan.seeds) & {spec.seed}
    own = plan.spec
    assert (own.trials, own.epochs, own.stopping.kind, own.train_on, own.start_with) == (6, spec.epochs, "none", "train+val", [])
    assert search_file.parse(own.text).space.searched.keys() == spec.space.searched.keys()
    assert finalists.plan(folder, top=2, seeds=3).text == plan.text
    assert len({finalists.plan(folder, top=t, seeds=s).text for t, s in ((2, 3), (1, 3), (2, 2))}) == 3


def test_without_a_holdout_the_training_images_alone_are_trained_on(tmp_path):
    folder, _, facts = synthetic.made(tmp_path)
    text = facts.text.replace("{name: digits}", "{name: digits, holdout_fraction: 0}")
    (folder / "search.yaml").write_text(text)
    searches.write(folder, dataclasses.replace(facts, text=text))
    assert finalists.plan(folder, top=1, seeds=1).spec.train_on == "train"


def test_a_search_without_a_full_training_cannot_be_promoted(tmp_path):
    folder, _, _ = synthetic.begin(tmp_path)
    Ledger(folder / "ledger.jsonl").close()
    with pytest.raises(SearchError, match="no trial has reached full length yet; let the search end or `vit-search resume made-1`"):
        finalists.plan(folder, top=3, seeds=3)


def retrained(plan, *outcomes):
    """The folder of a plan's trainings, each ended as told: a value of full length, or a reason."""
    place = plan.search / "promotions" / "1"
    place.mkdir(parents=True)
    write_whole(place / finalists.PLANNED, plan.text)
    facts = dataclasses.replace(searches.read(plan.search)[1], search="made-1-promotion-1", text=plan.spec.text, promotes="made-1")
    searches.write(place, facts)
    book = Ledger(place / "ledger.jsonl")
    for number, outcome in enumerate(outcomes):
        book.append(Proposed(trial=number, params=plan.trainings[number][0]))
        for epoch in range(1, plan.spec.epochs + 1 if isinstance(outcome, float) else 2):
            book.append(Reported(trial=number, result=synthetic.result(epoch, outcome if isinstance(outcome, float) else 0.1)))
        if outcome != "open":
            failed = isinstance(outcome, str)
            book.append(Ended(trial=number, outcome="diverged" if failed else "completed", reason=outcome if failed else ""))
    book.close()


def test_a_finalist_counts_with_all_its_seeds_or_not_at_all(tmp_path):
    folder, _, _ = synthetic.made(tmp_path, trials=12)
    plan = finalists.plan(folder, top=2, seeds=2)
    assert (plan.folder, plan.left) == (None, 4)
    retrained(plan, 0.8, 0.9, 0.95, "the loss is nan")
    assert (plan.folder, plan.left) == (folder / "promotions" / "1", 0)
    found = finalists.read(plan)
    (first,) = found.finalists
    assert (first.trial, first.values, first.seeds, first.numbers) == (plan.finalists[0].number, (0.8, 0.9), plan.seeds, (0, 1))
    assert first.accuracies == (0.8, 0.9)
    assert first.checkpoints[1] == folder / "promotions/1/trials/0001/checkpoint"
    assert found.lost == {plan.finalists[1].number: "the loss is nan"}
    assert (found.search, found.run_name) == ("made-1", "made-1-promotion-1")


def test_trainings_that_are_not_over_are_not_read(tmp_path):
    folder, _, _ = synthetic.made(tmp_path, trials=12)
    plan = finalists.plan(folder, top=1, seeds=2)
    retrained(plan, 0.8, "open")
    assert plan.left == 1
    with pytest.raises(SearchError, match="1 of 2 training runs are left; `vit-search promote made-1`"):
        finalists.read(plan)


def test_other_trainings_are_not_taken_for_these(tmp_path):
    folder, _, _ = synthetic.made(tmp_path, trials=12)
    retrained(finalists.plan(folder, top=1, seeds=2), 0.8, 0.9)
    assert finalists.plan(folder, top=1, seeds=3).folder is None
    planned = folder / "promotions/1" / finalists.PLANNED
    assert json.loads(planned.read_text())["seeds"] == list(finalists.plan(folder, top=1, seeds=2).seeds)
