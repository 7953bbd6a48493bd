"""Metrics of probabilities: by hand, and as scikit-learn and torchmetrics have them, ties included."""

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score
from torchmetrics.functional.classification import multiclass_auroc, multiclass_average_precision, multiclass_calibration_error

from vit_search.vit.probability_scores import PROBABILITY_SCORES, auroc, average_precision, calibration_error

LABELS = torch.tensor([1, 0, 1, 0, 0])
OF_ONE = torch.tensor([0.9, 0.8, 0.4, 0.4, 0.1], dtype=torch.float64)
"""Probabilities of class 1 of those images."""
TWO = torch.stack([1 - OF_ONE, OF_ONE], 1)


def drawn(seed, *, ties=False, classes=None):
    """Probabilities and labels with every class among them."""
    rng = np.random.default_rng(seed)
    classes = classes or int(rng.integers(2, 9))
    labels = np.r_[np.arange(classes), rng.choice(classes, 60, p=rng.dirichlet(np.ones(classes)))]
    logits = rng.normal(size=(len(labels), classes)) * rng.uniform(0.2, 4)
    logits = np.round(logits) if ties else logits
    return torch.from_numpy(logits).softmax(1), torch.from_numpy(labels)


def test_the_area_is_the_share_of_pairs_in_the_right_order_and_a_tie_counts_half():
    """Of 0.9 and 0.4 against 0.8, 0.4, 0.1: 3 pairs of 3 are right, and 0 + half + 1. Seen from class 0 they are the same pairs."""
    assert auroc(TWO, LABELS) == pytest.approx((3 + 1.5) / 6)


def test_average_precision_is_the_mean_precision_at_each_image_of_the_class():
    """Class 1: 1 of 1 at 0.9, 2 of the 4 with at least 0.4. Class 0, by 1 - p: 1 of 1 at 0.9, 2 of 3 at 0.6, 3 of 4 at 0.2."""
    assert average_precision(TWO, LABELS) == pytest.approx(((1 + 2 / 4) / 2 + (1 + 2 / 3 + 3 / 4) / 3) / 2)


def test_the_calibration_error_weighs_each_bin_by_its_images():
    """0.9, 0.9 and 0.9, of which two are right, lie in one bin; 0.6, which is wrong, in another."""
    probabilities = torch.tensor([[0.9, 0.1], [0.1, 0.9], [0.9, 0.1], [0.6, 0.4]], dtype=torch.float64)
    assert calibration_error(probabilities, torch.tensor([0, 1, 1, 1])) == pytest.approx((abs(2 - 2.7) + 0.6) / 4)


def test_a_model_that_is_sure_and_right_is_perfect_and_one_that_knows_nothing_is_at_chance():
    labels = torch.tensor([0, 1, 2, 2])
    sure, ignorant = torch.eye(3, dtype=torch.float64)[labels], torch.full((4, 3), 1 / 3, dtype=torch.float64)
    assert [score(sure, labels) for score in PROBABILITY_SCORES.values()] == [1.0, 1.0, 0.0]
    assert auroc(ignorant, labels) == 0.5
    assert average_precision(ignorant, labels) == pytest.approx((1 / 4 + 1 / 4 + 1 / 2) / 3)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(20))
def test_scores_are_those_of_scikit_learn(seed, ties):
    probabilities, labels = drawn(seed, ties=ties)
    one_hot = np.eye(probabilities.shape[1])[labels]
    assert auroc(probabilities, labels) == pytest.approx(roc_auc_score(one_hot, probabilities.numpy(), average="macro"), abs=1e-12)
    expected = average_precision_score(one_hot, probabilities.numpy(), average="macro")
    assert average_precision(probabilities, labels) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(20))
def test_scores_are_those_of_torchmetrics(seed, ties):
    probabilities, labels = drawn(seed, ties=ties)
    classes = probabilities.shape[1]
    theirs = [
        multiclass_auroc(probabilities, labels, classes, average="macro"),
        multiclass_average_precision(probabilities, labels, classes, average="macro"),
        multiclass_calibration_error(probabilities, labels, classes, n_bins=15, norm="l1"),
    ]
    found = [PROBABILITY_SCORES[name](probabilities, labels) for name in ("val_auroc", "val_average_precision", "val_ece")]
    assert found == pytest.approx([float(value) for value in theirs], abs=1e-6)  # theirs are summed in float32


@pytest.mark.parametrize("edge", [k / 15 for k in range(8, 16)])
def test_a_confidence_on_the_edge_of_a_bin_counts_where_torchmetrics_has_it(edge):
    probabilities = torch.tensor([[edge, 1 - edge], [edge - 0.01, 1.01 - edge], [min(edge + 0.01, 1.0), max(0.99 - edge, 0.0)]]).double()
    labels = torch.tensor([0, 1, 1])
    theirs = float(multiclass_calibration_error(probabilities, labels, 2, n_bins=15, norm="l1"))
    assert calibration_error(probabilities, labels) == pytest.approx(theirs, abs=1e-6)


def test_without_an_image_of_a_class_there_is_no_area_and_no_precision():
    probabilities = torch.full((3, 3), 1 / 3, dtype=torch.float64)
    for labels in (torch.tensor([0, 1, 1]), torch.tensor([2, 2, 2])):
        assert auroc(probabilities, labels) is None
        assert average_precision(probabilities, labels) is None
        assert calibration_error(probabilities, labels) is not None
    assert auroc(probabilities[:, :1], torch.zeros(3, dtype=torch.int64)) is None
