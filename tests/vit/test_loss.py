"""The losses by hand. Two classes and logits (0, ln 3) give the probabilities 1/4 and 3/4."""

import math

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch.nn import functional as F

from vit_search.config.training_config import TrainingConfig
from vit_search.errors import SpecError
from vit_search.vit.augment import Targets, mix
from vit_search.vit.loss import Loss, balanced_weights, focal, log_prior_adjustment, loss_of

LOGITS = torch.tensor([[0.0, math.log(3)]] * 2)
BOTH = torch.tensor([0, 1])
OF_0, OF_1 = math.log(4), math.log(4 / 3)
"""Cross-entropy of the labels 0 and 1."""


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def value(loss, labels=BOTH, logits=LOGITS, **mixed):
    return float(loss(logits, Targets(labels, **mixed)))


def test_balanced_weights_are_images_over_classes_times_images_of_the_class():
    weights = balanced_weights(torch.tensor([6, 2]))  # 8 / (2 * 6) and 8 / (2 * 2)
    assert weights.tolist() == pytest.approx([2 / 3, 2])
    assert float(weights[torch.tensor([0] * 6 + [1] * 2)].mean()) == pytest.approx(1)


def test_balanced_weights_are_those_of_scikit_learn():
    labels = torch.randint(7, (500,), generator=seeded()) % torch.randint(1, 8, (500,), generator=seeded(1))
    expected = compute_class_weight("balanced", classes=np.arange(7), y=labels.numpy())
    assert torch.bincount(labels).max() > 3 * torch.bincount(labels).min()
    assert balanced_weights(torch.bincount(labels)).tolist() == pytest.approx(expected.tolist())


def test_a_class_without_images_counts_as_none():
    assert balanced_weights(torch.tensor([6, 0, 2])).tolist() == pytest.approx([2 / 3, 0, 2])
    assert log_prior_adjustment(torch.tensor([3, 0, 1]), 1.0).isfinite().all()


def test_a_weighted_loss_is_divided_by_the_number_of_images():
    assert value(Loss(0.0, weights=torch.tensor([3.0, 1.0]))) == pytest.approx((3 * OF_0 + OF_1) / 2)
    assert value(Loss(0.0, weights=torch.tensor([1.0, 1.0]))) == pytest.approx(value(Loss(0.0)))


def test_a_weight_of_two_is_the_image_shown_twice():
    twice = value(Loss(0.1), torch.tensor([0, 0, 1]), LOGITS[[0, 0, 0]]) * 3
    assert value(Loss(0.1, weights=torch.tensor([2.0, 1.0]))) * 2 == pytest.approx(twice)


def test_without_smoothing_the_weighted_losses_are_those_of_torch():
    logits, labels, weights = torch.randn(9, 4, generator=seeded()), torch.arange(9) % 4, torch.tensor([0.5, 1.0, 2.0, 8.0])
    expected = F.cross_entropy(logits, labels, weight=weights, reduction="sum") / 9
    assert value(Loss(0.0, weights=weights), labels, logits) == pytest.approx(float(expected), rel=1e-6)


def test_label_smoothing_is_weighted_by_the_class_of_the_image():
    one = 0.9 * OF_0 + 0.1 * OF_1  # smoothing 0.2 over two classes
    assert value(Loss(0.2, weights=torch.tensor([3.0, 1.0])), torch.tensor([0]), LOGITS[:1]) == pytest.approx(3 * one)


def test_of_two_mixed_images_each_label_has_its_weight_and_its_share():
    mixed = {"others": torch.tensor([1]), "share": torch.tensor([0.25])}
    found = value(Loss(0.0, weights=torch.tensor([3.0, 1.0])), torch.tensor([0]), LOGITS[:1], **mixed)
    assert found == pytest.approx(0.25 * 3 * OF_0 + 0.75 * OF_1)


def test_a_weighted_image_counts_as_often_as_its_weight_says():
    assert value(Loss(0.0), weights=torch.tensor([0.5, 1.5])) == pytest.approx((0.5 * OF_0 + 1.5 * OF_1) / 2)
    smooth = 0.9 * OF_0 + 0.1 * OF_1, 0.9 * OF_1 + 0.1 * OF_0
    assert value(Loss(0.2), weights=torch.tensor([0.5, 1.5])) == pytest.approx((0.5 * smooth[0] + 1.5 * smooth[1]) / 2)


def test_the_weights_of_an_image_and_of_its_class_are_multiplied():
    loss = Loss(0.0, weights=torch.tensor([3.0, 1.0]), gamma=2.0)
    found = value(loss, weights=torch.tensor([0.5, 1.5]))
    assert found == pytest.approx((0.5 * 3 * 9 / 16 * OF_0 + 1.5 * 1 / 16 * OF_1) / 2)


def test_of_two_mixed_images_each_label_has_the_weight_of_its_own_image():
    targets = Targets(BOTH, torch.tensor([1, 0]), torch.tensor([0.25, 1.0])).weighted(torch.tensor([0.5, 1.5]))
    first = 0.25 * 0.5 * OF_0 + 0.75 * 1.5 * OF_1  # the image of weight 0.5 with a share of 1/4, its partner of weight 1.5 with 3/4
    assert float(Loss(0.0)(LOGITS, targets)) == pytest.approx((first + 1.5 * OF_1) / 2)
    assert [part.weights.tolist() + part.other_weights.tolist() for part in targets.split(1)] == [[0.5, 1.5], [1.5, 0.5]]


def test_mixing_gives_each_image_the_label_and_the_weight_of_the_same_partner():
    labels = torch.arange(5)
    _, targets = mix(torch.zeros(5, 1, 2, 2), labels, 1.0, 0.0, seeded())
    weighted = targets.weighted(10.0 * labels)
    assert weighted.other_weights.tolist() == [10 * label for label in targets.others.tolist()]


def test_the_size_of_a_class_is_the_sum_of_the_weights_of_its_images():
    labels, weights = torch.tensor([0, 0, 0, 1]), torch.tensor([0.5, 0.5, 0.5, 2.5])  # 1.5 and 2.5 of 4
    made = loss_of(TrainingConfig(loss="logit_adjusted", class_weights="balanced"), labels, (), 2, weights)
    assert made.weights.tolist() == pytest.approx([4 / (2 * 1.5), 4 / (2 * 2.5)])
    assert float((weights * made.weights[labels]).mean()) == pytest.approx(1)  # the loss keeps its scale
    assert made.adjustment.tolist() == pytest.approx([math.log(1.5 / 4), math.log(2.5 / 4)])
    expected = compute_class_weight("balanced", classes=np.arange(2), y=labels.numpy(), sample_weight=weights.numpy())
    assert made.weights.tolist() == pytest.approx(expected.tolist())


def test_the_focal_loss_counts_an_image_by_how_far_it_is_from_being_recognised():
    assert focal(LOGITS, BOTH, 2.0, 0.0).tolist() == pytest.approx([9 / 16 * OF_0, 1 / 16 * OF_1])
    assert focal(LOGITS, BOTH, 1.0, 0.0).tolist() == pytest.approx([3 / 4 * OF_0, 1 / 4 * OF_1])
    assert value(Loss(0.0, gamma=2.0)) == pytest.approx((9 / 16 * OF_0 + 1 / 16 * OF_1) / 2)


def test_label_smoothing_spreads_the_focal_loss_as_it_spreads_cross_entropy():
    assert focal(LOGITS[:1], BOTH[:1], 2.0, 0.2).tolist() == pytest.approx([0.9 * 9 / 16 * OF_0 + 0.1 * 1 / 16 * OF_1])


def test_of_mixed_images_the_focal_loss_is_that_of_each_label_by_its_share():
    mixed = {"others": torch.tensor([1]), "share": torch.tensor([0.25])}
    found = value(Loss(0.0, gamma=2.0), torch.tensor([0]), LOGITS[:1], **mixed)
    assert found == pytest.approx(0.25 * 9 / 16 * OF_0 + 0.75 * 1 / 16 * OF_1)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_without_strength_each_loss_is_cross_entropy(smoothing):
    logits, labels = torch.randn(64, 10, generator=seeded()), torch.randint(10, (64,), generator=seeded(1))
    others, share = torch.randint(10, (64,), generator=seeded(2)), torch.rand(64, generator=seeded(3))
    none = log_prior_adjustment(torch.arange(1, 11), 0.0)
    for mixed in ({}, {"others": others, "share": share}):
        plain = value(Loss(smoothing), labels, logits, **mixed)
        assert value(Loss(smoothing, gamma=0.0), labels, logits, **mixed) == pytest.approx(plain, rel=1e-5)
        assert value(Loss(smoothing, adjustment=none), labels, logits, **mixed) == pytest.approx(plain, rel=1e-6)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_the_gradient_of_the_focal_loss_is_finite_for_an_image_that_is_surely_right_or_wrong(gamma):
    logits = torch.tensor([[200.0, -200.0], [-200.0, 200.0], [17.0, 0.0]], requires_grad=True)
    Loss(0.1, gamma=gamma)(logits, Targets(torch.zeros(3, dtype=torch.int64))).backward()
    assert logits.grad.isfinite().all()


def test_the_logit_adjusted_loss_adds_the_logarithm_of_the_share_of_each_class():
    equal = torch.zeros(2, 2)  # nine images of class 0, one of class 1: the shares become the probabilities
    assert value(Loss(0.0, adjustment=log_prior_adjustment(torch.tensor([9, 1]), 1.0)), BOTH, equal) == pytest.approx(
        (math.log(10 / 9) + math.log(10)) / 2
    )
    half = log_prior_adjustment(torch.tensor([9, 1]), 0.5)  # square roots of the shares: 3 to 1
    assert value(Loss(0.0, adjustment=half), BOTH, equal) == pytest.approx((math.log(4 / 3) + math.log(4)) / 2)


def test_label_smoothing_of_the_logit_adjusted_loss_is_spread_by_the_shares_of_the_classes():
    loss = Loss(0.2, adjustment=log_prior_adjustment(torch.tensor([9, 1]), 1.0))
    expected = 0.8 * math.log(10) + 0.2 * (0.9 * math.log(10 / 9) + 0.1 * math.log(10))
    assert value(loss, torch.tensor([1]), torch.zeros(1, 2)) == pytest.approx(expected)


@pytest.mark.parametrize("label", [0, 1])
def test_with_label_smoothing_the_logit_adjusted_loss_is_least_where_the_plain_logits_are_right(label):
    share = (0.99, 0.01)[label]
    margin = math.log((0.9 + 0.1 * share) / (0.1 * share))  # over the other class, above 0 however frequent the class is
    assert margin > 2
    logits = torch.zeros(1, 2)
    logits[0, label] = margin
    logits.requires_grad_()
    Loss(0.1, adjustment=log_prior_adjustment(torch.tensor([99, 1]), 1.0))(logits, Targets(torch.tensor([label]))).backward()
    assert logits.grad.abs().max() < 1e-6


def test_a_loss_is_made_of_the_labels_that_are_trained_on():
    labels = torch.tensor([0] * 9 + [1])
    made = loss_of(TrainingConfig(loss="logit_adjusted", logit_tau=2.0, class_weights="balanced"), labels, (), 2)
    assert made.adjustment.tolist() == pytest.approx([2 * math.log(0.9), 2 * math.log(0.1)])
    assert made.weights.tolist() == pytest.approx([10 / 18, 5])
    assert made.gamma is None
    assert loss_of(TrainingConfig(loss="focal", focal_gamma=1.5), labels, (), 2) == Loss(0.1, gamma=1.5)
    assert loss_of(TrainingConfig(), labels, (), 2) == Loss(0.1)


def test_weights_go_to_their_classes_by_name_and_others_have_one():
    config = TrainingConfig(class_weights='{"cat": 2.0, "ant": 0.5}')
    assert loss_of(config, torch.tensor([0, 1, 2]), ("ant", "bee", "cat"), 3).weights.tolist() == [0.5, 1.0, 2.0]
    with pytest.raises(SpecError, match="the data has no class cat; did you mean cats"):
        loss_of(config, torch.tensor([0, 1]), ("ant", "cats"), 2)
