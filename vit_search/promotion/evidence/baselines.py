"""Answers of two simple baselines on a split: always the most frequent class, and logistic regression on the pixels."""

from __future__ import annotations

import warnings

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from vit_search.data.batches import Split, StreamedSplit, load_split
from vit_search.data.cache import DataSet
from vit_search.promotion.evidence.answers import SplitAnswers, answers_of
from vit_search.vit.augment import largest_value
from vit_search.vit.evaluation import EVALUATED_AT_ONCE


def majority(data: DataSet, split: Split | StreamedSplit) -> SplitAnswers:
    """Always the most frequent class of the training images. The probabilities are the classes' shares of the training images."""
    counts = torch.bincount(load_split(data, "train").labels.cpu(), minlength=len(data.classes)).double().numpy() + 1  # no probability of 0
    return answers_of(data.classes, split.labels.cpu().numpy(), np.tile(counts / counts.sum(), (len(split), 1)))


PROBE_IMAGES = 5_000

PROBE_WEIGHTS = 200_000
"""Most images and weights of the linear probe. Larger images are averaged down to fit. Both limits keep it to about 10 s."""


def linear_probe(data: DataSet, split: Split | StreamedSplit, seed: int = 0) -> SplitAnswers:
    """Multinomial logistic regression on the pixels, fitted to at most 5,000 training images.

    They are drawn in the proportion of the classes. Larger images are averaged down to 32, 16 or 8 pixels per side.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    train = load_split(data, "train")
    labels = train.labels.cpu().numpy()
    rng = np.random.default_rng(seed)
    share = min(1.0, PROBE_IMAGES / len(labels))
    by_class = [rng.permutation(np.flatnonzero(labels == label)) for label in np.unique(labels)]
    chosen = np.sort(np.concatenate([indices[: max(1, int(len(indices) * share))] for indices in by_class]))
    side = next((s for s in (32, 16) if data.channels * s * s * len(data.classes) <= PROBE_WEIGHTS), 8)
    size = min(side, data.image_size[0]), min(side, data.image_size[1])

    def features(of: Split | StreamedSplit, indices: Tensor) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        rows, classes = [], []
        for images, labels_of_part in of.batches(indices.split(EVALUATED_AT_ONCE)):
            rows.append(F.adaptive_avg_pool2d(images.float() / largest_value(images), size).flatten(1).cpu())
            classes.append(labels_of_part.cpu())
        return torch.cat(rows).numpy(), torch.cat(classes).numpy()

    inputs, targets = features(train, torch.from_numpy(chosen))
    if len(np.unique(targets)) < 2:
        return majority(data, split)
    mean = inputs.mean(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # 100 steps limit the time, and are enough for a baseline
        probe = LogisticRegression(max_iter=100).fit(inputs - mean, targets)
    images, truth = features(split, torch.arange(len(split)))
    probabilities = np.zeros((len(truth), len(data.classes)))
    probabilities[:, probe.classes_] = probe.predict_proba(images - mean)
    return answers_of(data.classes, truth, probabilities)
