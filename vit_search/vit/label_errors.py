"""Find images whose label is probably wrong, with confident learning. The model must not have been trained on these images.

A class has a threshold: the mean probability that the model gives it on the images with its label. An image is counted as the most probable
class among those whose threshold it reaches. If this class is not its label, and the label is not the model's answer either, the label is
suspected. Thresholds per class make up for classes of which the model is never sure.
Source: Northcutt, Jiang and Chuang 2021, Confident Learning, section 3.1, https://arxiv.org/abs/1911.00068
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Suspect:
    """An image whose label may be wrong."""

    index: int
    """Index of the image."""
    suggested: int
    """The class that it is counted as."""
    self_confidence: float
    """The probability that the model gives the image's own label."""


def thresholds(labels: Labels, self_confidence: Floats, classes: int) -> Floats:
    """The threshold of each class, (classes,). Infinite for a class without images, so that no image is counted as it."""
    images = np.bincount(labels, minlength=classes)
    sums = np.bincount(labels, weights=self_confidence, minlength=classes)
    return np.where(images > 0, sums / np.maximum(images, 1), np.inf)


def confident_classes(labels: Labels, probabilities: Floats) -> Labels:
    """The class that each image is counted as, (images,); -1 if it reaches no threshold.

    Args:
        labels: (images,).
        probabilities: (images, classes), from a model that was not trained on these images.
    """
    own = probabilities[np.arange(len(labels)), labels]
    reached = probabilities >= thresholds(labels, own, probabilities.shape[1])
    best = np.where(reached, probabilities, -1.0).argmax(1)
    return np.where(reached.any(1), best, -1)


def confident_joint(labels: Labels, probabilities: Floats) -> Labels:
    """Number of images by label (row) and by the class that they are counted as (column)."""
    counted, classes = confident_classes(labels, probabilities), probabilities.shape[1]
    sure = counted >= 0
    return np.bincount(labels[sure] * classes + counted[sure], minlength=classes**2).reshape(classes, classes)


def suspects(labels: Labels, probabilities: Floats) -> list[Suspect]:
    """The suspected label errors, the least probable label first. Arguments as above."""
    counted = confident_classes(labels, probabilities)
    chosen = np.flatnonzero((counted >= 0) & (counted != labels) & (probabilities.argmax(1) != labels))
    return _ranked(chosen, counted, probabilities[np.arange(len(labels)), labels])


def suspects_by_answers(labels: Labels, self_confidence: Floats, answers: Labels, confidence: Floats, classes: int) -> list[Suspect]:
    """As `suspects`, if only the model's answers are known: an image is counted as the answer, if it reaches that threshold.

    It misses images that are counted as another class than the model's answer.

    Args:
        self_confidence: (images,), the probability of the label.
        answers: (images,).
        confidence: (images,), the probability of the answer.
    """
    least = thresholds(labels, self_confidence, classes)
    chosen = np.flatnonzero((confidence >= least[answers]) & (answers != labels))
    return _ranked(chosen, answers, self_confidence)


def _ranked(chosen: Labels, suggested: Labels, self_confidence: Floats) -> list[Suspect]:
    order = chosen[np.lexsort((chosen, self_confidence[chosen]))]
    return [Suspect(int(i), int(suggested[i]), float(self_confidence[i])) for i in order]
