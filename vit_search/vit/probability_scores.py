"""Metrics of a model's probabilities: how well they rank the images of each class, and how far they can be trusted.

To add one, add a function here, and a line in PROBABILITY_SCORES. It returns None for images from which it cannot be computed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

BINS = 15
"""Bins of the calibration error, equal in width over 0 to 1 (Guo et al. 2017, https://arxiv.org/abs/1706.04599)."""


def auroc(probabilities: Tensor, labels: Tensor) -> float | None:
    """Area under the ROC curve of each class against the rest, mean of the classes.

    Take all pairs of an image of the class and an image of another class. The area is the share of pairs in which the first image gets the
    higher probability of the class. A tie counts half.

    Args:
        probabilities: (n, classes), float64.
        labels: (n,), int64.
    Returns: a fraction in [0, 1]; None if a class has no image, or all of them.
    """
    areas = []
    for of_class, all_scores, label_scores in _by_class(probabilities, labels):
        others = len(all_scores) - of_class
        if not of_class or not others:
            return None
        below = _below(all_scores, label_scores) - _below(label_scores, label_scores)
        areas.append(below.sum() / (of_class * others))
    return float(torch.stack(areas).mean())


def average_precision(probabilities: Tensor, labels: Tensor) -> float | None:
    """Average precision of each class against the rest, mean of the classes.

    For each image of the class, take all images with at least its probability of the class: what share of them is of the class? Average
    precision is the mean of these shares.

    Args:
        probabilities, labels: as above.
    Returns: a fraction in [0, 1]; None if a class has no image, or all of them.
    """
    precisions = []
    for of_class, all_scores, label_scores in _by_class(probabilities, labels):
        if not of_class or of_class == len(all_scores):
            return None
        right = of_class - torch.searchsorted(label_scores, label_scores)
        reached = len(all_scores) - torch.searchsorted(all_scores, label_scores)
        precisions.append((right.double() / reached).mean())
    return float(torch.stack(precisions).mean())


def calibration_error(probabilities: Tensor, labels: Tensor) -> float:
    """Expected calibration error: mean distance of confidence and accuracy over 15 bins, each weighted by its images.

    A bin includes its lower edge. A confidence of exactly 1 has a bin of its own, as in torchmetrics.

    Args:
        probabilities, labels: as above.
    Returns: a fraction in [0, 1]; 0 if the confidence equals the accuracy in each bin.
    """
    confidence, predictions = probabilities.max(1)
    edges = torch.linspace(0, 1, BINS + 1, dtype=torch.float64, device=probabilities.device)
    bins = torch.bucketize(confidence, edges, right=True) - 1
    gaps = torch.zeros(BINS + 1, dtype=torch.float64, device=probabilities.device)
    gaps.index_add_(0, bins, (predictions == labels).double() - confidence)
    return float(gaps.abs().sum() / len(labels))


def _by_class(probabilities: Tensor, labels: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
    """For each class: its number of images, all images' probabilities of the class, and those of its own images; both ascending."""
    for number in range(probabilities.shape[1]):
        scores = probabilities[:, number]
        own = scores[labels == number]
        yield len(own), scores.sort().values, own.sort().values


def _below(scores: Tensor, values: Tensor) -> Tensor:
    """How many of the ascending scores are below each value, plus half of those equal to it."""
    return (torch.searchsorted(scores, values) + torch.searchsorted(scores, values, right=True)).double() / 2


PROBABILITY_SCORES: dict[str, Callable[[Tensor, Tensor], float | None]] = {
    "val_auroc": auroc,
    "val_average_precision": average_precision,
    "val_ece": calibration_error,
}
"""Metrics that are computed from probabilities (n, classes) and labels (n,), by their names in config/metrics.py."""
