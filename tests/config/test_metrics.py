"""Metrics for classes of unequal size, held against scikit-learn's, and used to rank trials."""

import numpy as np
import pytest
import torch
from helpers.simulation import MemoryLedger, World, driver_of, result
from sklearn.metrics import balanced_accuracy_score, f1_score, recall_score

from vit_search.config import search_file
from vit_search.config.metrics import METRICS, RANKING
from vit_search.config.trial import EpochResult
from vit_search.ledger.trials import Trial, ranked
from vit_search.vit.evaluation import SCORES
from vit_search.vit.probability_scores import PROBABILITY_SCORES


def scores(labels, predictions, classes):
    confusion = torch.bincount(torch.tensor(labels) * classes + torch.tensor(predictions), minlength=classes**2).view(classes, classes)
    return {name: score(confusion.double()) for name, score in SCORES.items()}


def test_what_always_says_the_frequent_class_is_right_nine_times_in_ten_and_worth_a_half():
    found = scores([0] * 9 + [1], [0] * 10, 2)
    assert found["val_balanced_accuracy"] == 0.5
    assert found["val_macro_f1"] == pytest.approx((2 * 9 / 19 + 0) / 2)


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
@pytest.mark.parametrize("seed", range(20))
def test_scores_are_those_of_scikit_learn_also_where_classes_are_missing(seed):
    rng = np.random.default_rng(seed)
    classes = int(rng.integers(2, 12))
    labels, predictions = (rng.integers(0, rng.integers(1, classes + 1), size=30) for _ in range(2))
    found = scores(labels, predictions, classes)
    assert found["val_macro_f1"] == pytest.approx(f1_score(labels, predictions, average="macro"))
    assert found["val_balanced_accuracy"] == pytest.approx(balanced_accuracy_score(labels, predictions))
    recalls = recall_score(labels, predictions, labels=np.unique(labels), average=None)
    assert found["val_worst_class_recall"] == pytest.approx(recalls.min())


def test_the_worst_class_decides():
    found = scores([0] * 10 + [1] * 4, [0] * 8 + [1] * 2 + [1] + [0] * 3, 3)
    assert found["val_worst_class_recall"] == 0.25  # of class 0 it is 0.8; class 2 has no image


def test_every_score_is_a_metric_and_every_metric_has_a_value():
    given = result(1, 0.5)
    known = {name for name in RANKING if hasattr(given, name)}
    assert known | SCORES.keys() | PROBABILITY_SCORES.keys() == set(RANKING)
    assert all(METRICS[name].fraction for name in [*SCORES, *PROBABILITY_SCORES])
    assert all(METRICS[name].mode == ("min" if name == "val_ece" else "max") for name in [*SCORES, *PROBABILITY_SCORES])


def test_trials_are_ranked_by_a_score():
    def trial(number, accuracy, f1):
        values = vars(result(1, accuracy)) | {"scores": {"val_macro_f1": f1}}
        return Trial(number, {}, results=[EpochResult(**values)], outcome="completed")

    assert [t.number for t in ranked([trial(0, 0.9, 0.5), trial(1, 0.8, 0.7)], "val_macro_f1", "max")] == [1, 0]


@pytest.mark.parametrize("metric", [*SCORES, *PROBABILITY_SCORES, "val_loss"])
def test_a_search_stops_and_proposes_by_a_score(metric):
    """No file says `mode`; of a loss and of a calibration error the smallest comes first."""
    spec = search_file.parse(f"""
name: t
data: {{name: digits}}
metric: {metric}
trials: 12
epochs: 4
concurrency: 3
stopping: {{grace_epochs: 1, reduction_factor: 2, audit_share: 0}}
model: {{dim: {{choice: [16, 24]}}, heads: 2, depth: {{int: [1, 4]}}}}
""")
    book = MemoryLedger()
    world = World(driver_of(spec, book), book)
    world.score = metric
    world.run()
    trials = list(world.driver.trials.values())
    lengths = [len(trial.results) for trial in trials]
    assert len(lengths) == 12 and 1 in lengths and 4 in lengths
    values = [trial.value(metric) for trial in trials if trial.outcome == "completed"]
    pick, worse = (min, max) if METRICS[metric].mode == "min" else (max, min)
    assert ranked(trials, spec.metric, spec.mode)[0].value(metric) == pick(values) != worse(values)
    first = {
        whether: np.mean([t.results[0].value(metric) for t in trials if (t.outcome == "completed") == whether]) for whether in (True, False)
    }
    assert pick(first.values()) == first[True]
