"""Comparison by other metrics than accuracy: weighted metrics as scikit-learn has them, both tests, and how seldom chance gets through."""

import dataclasses
import json
import math

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, balanced_accuracy_score, f1_score, log_loss, recall_score, roc_auc_score

from vit_search.config.metrics import METRICS, RANKING
from vit_search.promotion import gates, policy, score_comparison
from vit_search.promotion.class_drops import metric_drops
from vit_search.promotion.evidence import weighted_metrics
from vit_search.promotion.evidence.answers import SplitAnswers, answers_of
from vit_search.promotion.evidence.weighted_metrics import answers_give, needs_probabilities, value_of
from vit_search.promotion.readings import Reading
from vit_search.promotion.score_comparison import compare_scores, draws_of, share_of

DEFAULT = policy.load(None)
TESTED = [name for name in RANKING if answers_give(name)]
BY_SCORE = [name for name in TESTED if not METRICS[name].of_images]


def drawn(seed, *, images=200, signal=1.0, classes=5, labels=None, decimals=9):
    """A model's answers, and with few decimals many ties."""
    rng = np.random.default_rng(seed)
    labels = (
        np.r_[np.arange(classes), rng.choice(classes, images - classes, p=rng.dirichlet(np.ones(classes)))] if labels is None else labels
    )
    logits = rng.normal(size=(len(labels), classes)).round(decimals)
    logits[np.arange(len(labels)), labels] += signal
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return answers_of(tuple("abcdefgh"[:classes]), labels, probabilities)


def test_a_test_split_gives_every_metric_of_validation_and_no_other():
    assert set(TESTED) == {name for name in RANKING if name.startswith("val_")}
    answers = drawn(0)
    assert all(value_of(answers, name) is not None for name in TESTED)
    assert value_of(answers, "train_loss") is value_of(answers, "seconds") is None


@pytest.mark.parametrize("decimals", [0, 9])
@pytest.mark.parametrize("seed", range(5))
def test_weighted_metrics_are_those_of_scikit_learn(seed, decimals):
    answers = drawn(seed, decimals=decimals)
    weights = np.random.default_rng(seed).integers(0, 4, (3, answers.images)).astype(float)
    weights[:, :5] = 1
    labels, guesses, chances = answers.labels, answers.predictions, answers.probabilities
    one_hot = np.eye(5)[labels]
    for row in weights:
        expected = {
            "val_accuracy": (guesses == labels) @ row / row.sum(),
            "val_macro_f1": f1_score(labels, guesses, average="macro", sample_weight=row),
            "val_balanced_accuracy": balanced_accuracy_score(labels, guesses, sample_weight=row),
            "val_worst_class_recall": recall_score(labels, guesses, average=None, sample_weight=row).min(),
            "val_auroc": roc_auc_score(one_hot, chances, average="macro", sample_weight=row),
            "val_average_precision": average_precision_score(one_hot, chances, average="macro", sample_weight=row),
            "val_loss": log_loss(labels, chances, sample_weight=row),
        }
        found = {name: float(weighted_metrics.of_all(answers, name)(row[None])[0, 0]) for name in expected}
        assert found == pytest.approx(expected, abs=1e-12)


def test_weighted_area_and_precision_worked_by_hand():
    """Probabilities of b in ascending order, * marks images of b: 0.1, 0.2*, 0.2, 0.3, 0.4*. Their weights: 1, 2, 1, 3, 1."""
    chances = np.array([0.1, 0.2, 0.2, 0.3, 0.4])
    answers = answers_of(("a", "b"), np.array([0, 1, 0, 0, 1]), np.stack([1 - chances, chances], axis=1))
    weights = np.array([[1.0, 2, 1, 3, 1]])
    area = weighted_metrics.of_classes(answers, "val_auroc")(weights)
    assert area[0, 1] == pytest.approx((2 * (1 + 1 / 2) + 1 * 5) / (3 * 5))  # pairs in the right order, a tie counts half
    precision = weighted_metrics.of_classes(answers, "val_average_precision")(weights)
    assert precision[0, 1] == pytest.approx((1 * 1 / 1 + 2 * 3 / 7) / 3)


@pytest.mark.parametrize("metric", ["val_macro_f1", "val_loss", "val_auroc"])
def test_draws_do_not_depend_on_how_many_are_held_in_memory(metric, monkeypatch):
    challenger, champion = drawn(1, labels=drawn(0).labels), drawn(0)
    many = compare_scores(challenger, champion, metric, reading=1, draws=40)
    monkeypatch.setattr(weighted_metrics, "AT_ONCE", 100)
    assert list(weighted_metrics.sizes(200, 20)) == [8, 8, 4]
    few = compare_scores(challenger, champion, metric, reading=1, draws=40)
    assert few.gains == pytest.approx(many.gains, abs=1e-12)
    assert few.swapped == pytest.approx(many.swapped, abs=1e-12)


@pytest.mark.parametrize("metric", TESTED)
def test_a_weight_of_two_is_the_image_twice_and_of_none_no_image(metric):
    answers = drawn(3, images=60)
    counts = np.random.default_rng(1).integers(0, 3, 60)
    counts[:5] = 1
    rows = np.repeat(np.arange(60), counts)
    again = answers_of(answers.classes, answers.labels[rows], answers.probabilities[rows])
    assert weighted_metrics.of_all(answers, metric)(counts[None].astype(float))[0, 0] == pytest.approx(value_of(again, metric), abs=1e-12)


@pytest.mark.parametrize("metric", TESTED)
def test_a_much_better_candidate_passes_by_each_metric_and_the_champion_itself_by_none(metric, monkeypatch):
    monkeypatch.setattr(score_comparison, "DRAWS", 1000)
    labels = np.arange(400) % 8
    champion = drawn(0, labels=labels, signal=0.5, classes=8)
    if metric == "val_ece":  # far too sure of itself
        champion = answers_of(
            champion.classes, champion.labels, champion.probabilities**4 / (champion.probabilities**4).sum(1, keepdims=True)
        )
    candidate = drawn(1, labels=labels, signal=2.0, classes=8)
    found = gates.comparison(candidate, champion, 1, DEFAULT, metric)
    assert found.passes, found.in_words()
    assert metric == "val_accuracy" or f"of {metric.removeprefix('val_')} on 400 test images" in found.in_words()
    assert not gates.comparison(champion, candidate, 1, DEFAULT, metric).passes
    same = gates.comparison(champion, champion, 1, DEFAULT, metric)
    assert (same.gain, same.passes) == (0.0, False)
    assert same.p == 1.0


def test_of_a_loss_the_smaller_one_wins():
    sure, unsure = (dataclasses.replace(drawn(0), label_nll=np.full(200, nll)) for nll in (0.2, 0.5))
    found = compare_scores(sure, unsure, "val_loss", reading=1, draws=100)
    assert found.gain == pytest.approx(0.3)
    assert "+0.3000 of loss on 200 test images (0.2000, the champion 0.5000 (less is better)" in found.in_words()


def test_swapping_answers_on_the_only_image_that_differs_undoes_the_gain_half_of_the_time():
    champion = drawn(0, images=50)
    nll = champion.label_nll.copy()
    nll[7] -= 0.5
    found = compare_scores(dataclasses.replace(champion, label_nll=nll), champion, "val_loss", reading=1)
    assert found.gain == pytest.approx(0.01)
    assert set(found.swapped.round(9)) == {-0.01, 0.01}
    assert found.p == pytest.approx(0.5, abs=0.02)
    assert not found.passes


@pytest.mark.parametrize(("metric", "ratio"), [("val_auroc", 120 / 107), ("val_loss", 20 / 19)])
def test_gains_of_drawn_images_vary_as_much_as_those_of_new_images(metric, ratio):
    """Drawn with replacement, n images have (n - 1) / n of their variance.

    Of classes with 8 and 12 images, 1 / 8 + 1 / 12 = 120 / 576 became 7 / 64 + 11 / 144 = 107 / 576.
    """
    labels = np.repeat([0, 1], [8, 12])
    candidate, champion = (drawn(seed, labels=labels, classes=2) for seed in (0, 1))
    weights = next(weighted_metrics.drawn_weights(np.ones(20, np.int64), 50))
    as_drawn = [weighted_metrics.of_all(answers, metric)(weights)[:, 0] for answers in (candidate, champion)]
    sign = -1 if metric == "val_loss" else 1
    found = compare_scores(candidate, champion, metric, reading=1, draws=50)
    expected = found.gain + math.sqrt(ratio) * (sign * (as_drawn[0] - as_drawn[1]) - found.gain)
    assert found.gains == pytest.approx(np.sort(expected))


def test_few_draws_give_a_chance_below_one_in_their_number():
    gains = np.random.default_rng(0).normal(0, 1, 400)
    assert share_of(gains, 3.9, few=True) < 0.0005  # 0.00005 of a normal distribution
    assert share_of(gains, 3.9) == 1 / 401
    assert share_of(gains, 0.0, few=True) == pytest.approx(0.5, abs=0.06)
    large = dataclasses.replace(drawn(0), labels=np.zeros(50_000, np.int64), classes=tuple(map(str, range(1000))))
    assert (draws_of(large, "val_auroc"), draws_of(large, "val_macro_f1"), draws_of(drawn(0), "val_auroc")) == (400, 10_000, 10_000)


@pytest.mark.parametrize("metric", BY_SCORE)
def test_by_each_metric_equal_models_pass_as_seldom_as_is_allowed(metric):
    """tests/benchmarks/false_promotions.py has twenty readings; here 60 pairs are compared once, at a chance of 0.1 each."""
    low = 0
    for i in range(60):
        champion = drawn(2 * i, images=120)
        challenger = drawn(2 * i + 1, labels=champion.labels)
        found = compare_scores(challenger, champion, metric, reading=1, draws=200)
        p = max((found.swapped >= found.gain).mean(), (found.gains <= 0).mean(), (found.gains >= 2 * found.gain).mean())
        low += p < 0.1
    assert low <= 13  # 6 are expected at most; 14 or more happen once in 600 times


def test_a_class_that_lost_its_precision_is_seen_where_trials_were_ranked_by_f1():
    """Both recognise all 60 images of b. The candidate also calls half of the images of a so."""
    labels = np.r_[np.zeros(300, np.int64), np.ones(60, np.int64), np.full(40, 2)]
    good, greedy = np.eye(3)[labels], np.eye(3)[labels]
    greedy[:150] = [0.1, 0.9, 0.0]
    champion, candidate = (answers_of(("a", "b", "c"), labels, rows) for rows in (good, greedy))
    drops = {drop.name: drop for drop in metric_drops(candidate, champion, "val_macro_f1", 0.03)}
    assert drops["b"].drop == pytest.approx(1 - 2 * 60 / (2 * 60 + 150))
    assert drops["b"].p < 0.001
    assert (drops["c"].drop, drops["c"].p) == (0.0, 1.0)
    found = gates.classes(candidate, champion, DEFAULT, "val_macro_f1")
    assert not found.passed
    assert "class b lost 0.5556 of f1 on its 60 images to the champion, 0.03 is allowed" in found.said
    assert "class b" not in gates.classes(candidate, champion, DEFAULT).said


def test_the_floors_are_those_of_the_metric_and_smaller_losses_are_better():
    answers = drawn(0, signal=2.0)
    loss = value_of(answers, "val_loss")
    ask = {"metric": "val_loss", "linear_probe": loss + 1}
    assert gates.floors(answers, DEFAULT, majority=loss + 0.1, **ask).passed
    assert "no better than always giving the most frequent class" in gates.floors(answers, DEFAULT, majority=loss, **ask).said
    assert gates.floors(answers, DEFAULT, majority=9.0, linear_probe=loss - 0.01, metric="val_loss").passed  # within chance
    assert "worse than logistic" in gates.floors(answers, DEFAULT, majority=9.0, linear_probe=loss - 0.5, metric="val_loss").said


def test_the_seeds_of_a_loss_may_differ_by_what_chance_does_to_it():
    values = [0.50, 0.55, 0.60]  # the deviation is 0.05
    found = gates.seeds(values, DEFAULT, images=100, metric="val_loss", noise=0.05)
    assert found.passed
    assert found.said == "loss 0.5500, deviation 0.0500 over 3 seeds on 100 images, chance alone 0.0500"
    assert not gates.seeds(values, DEFAULT, images=100, metric="val_loss", noise=0.04).passed


def test_answers_survive_json_with_probabilities_and_records_of_older_versions_are_read():
    answers = drawn(0)
    kept = json.loads(json.dumps(answers.to_dict()))
    again = SplitAnswers.from_dict(kept)
    assert (again.probabilities == answers.probabilities).all()
    assert (again.top5 == answers.top5).all()
    with pytest.raises(ValueError, match="199 labels"):
        SplitAnswers.from_dict(kept | {"labels": kept["labels"][1:]})
    del kept["probabilities"], kept["top5"]
    old = Reading.from_dict({"reading": 2, "policy": "p", "seen": kept, "rival": None, "majority": 0.5, "linear_probe": 0.25})
    assert (old.majority, old.linear_probe) == ({"val_accuracy": 0.5}, {"val_accuracy": 0.25})
    assert old.answers.top5 is None
    assert value_of(old.answers, "val_auroc") is None
    assert old.baseline_metric("val_macro_f1") == "val_accuracy"
    for metric in ("val_auroc", "val_top5_accuracy"):
        assert gates.comparison(old.answers, old.answers, 1, DEFAULT, metric).metric == "val_accuracy"
    new = dataclasses.replace(old, answers=answers, majority={"val_auroc": 0.5}, linear_probe={"val_auroc": 0.6})
    assert Reading.from_dict(json.loads(json.dumps(new.to_dict()))).baseline_metric("val_auroc") == "val_auroc"


def test_probabilities_are_kept_for_the_metrics_that_need_them_alone():
    assert [name for name in TESTED if needs_probabilities(name)] == ["val_auroc", "val_average_precision"]
    assert math.isclose(value_of(drawn(0), "val_ece"), drawn(0).ece)
